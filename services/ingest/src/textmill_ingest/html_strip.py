"""All the text of a web page that a reader sees, with the place in the source that each part of it came from.

Knows nothing of which part is the main text.
"""

import html
from html.parser import HTMLParser
from itertools import accumulate

from textmill_ingest.units import Segment

_SILENT = frozenset(
    ("script", "style", "noscript", "template", "title", "svg", "math", "iframe", "object", "textarea", "select")
)
_INLINE = frozenset(
    ("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
     "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
     "time", "tt", "u", "var", "wbr")
)  # fmt: skip
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})


class VisibleText(HTMLParser):
    """``text``, and the segments that lead from it to the source.

    ``blocks`` are the offsets in ``text`` at which a block, such as a paragraph, begins; ``headings`` are start, end
    and title of each h1 to h6.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.segments: list[Segment] = []
        self.headings: list[tuple[int, int, str]] = []
        self.blocks: list[int] = [0]
        self._source = source
        self._parts: list[str] = []
        self._length = 0
        self._silent = 0
        self._heading_start: int | None = None
        self._lines = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
        self.feed(source)
        self.close()
        self.text = "".join(self._parts)
        self.headings = [(a, b, " ".join(self.text[a:b].split())) for a, b, _ in self.headings]
        self.headings = [(a, b, title) for a, b, title in self.headings if title]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent += 1
        if tag not in _INLINE:
            self._break_line()
        if tag in _HEADINGS:
            self._heading_start = self._length

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE:
            self._break_line()

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        if tag in _HEADINGS and self._heading_start is not None:
            self.headings.append((self._heading_start, self._length, ""))
            self._heading_start = None
        if tag not in _INLINE:
            self._break_line()

    def handle_data(self, data: str) -> None:
        self._add(data, self._offset(), len(data))

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name}")

    def _reference(self, raw: str) -> None:
        at = self._offset()
        length = len(raw) + self._source.startswith(";", at + len(raw))
        self._add(html.unescape(raw + ";"), at, length)

    def _add(self, text: str, raw_start: int, raw_length: int) -> None:
        if not self._silent and text:
            self.segments.append(Segment(self._length, len(text), raw_start, raw_length))
            self._parts.append(text)
            self._length += len(text)

    def _break_line(self) -> None:
        """Blocks stand on lines of their own. The break comes from where the tag begins, and takes no room there."""
        if not self._silent and self._parts and not self._parts[-1].endswith("\n"):
            self.segments.append(Segment(self._length, 1, self._offset(), 0))
            self._parts.append("\n")
            self._length += 1
            self.blocks.append(self._length)

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column
