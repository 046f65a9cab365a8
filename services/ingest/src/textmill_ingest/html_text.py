"""The main text of a web page, with the way back into its markup.

trafilatura finds the main text but not where it stood. So the page is also read by a tag stripper that keeps offsets,
and the lines trafilatura gives are found again in what the stripper saw. Knows nothing of files.
"""

import html
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import accumulate

import trafilatura

from textmill_ingest.units import Segment

_SILENT = frozenset(
    ("script", "style", "noscript", "template", "head", "svg", "math", "iframe", "object", "textarea", "select")
)
_INLINE = frozenset(
    ("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
     "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
     "time", "tt", "u", "var", "wbr")
)  # fmt: skip
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")


@dataclass(frozen=True)
class PageText:
    """``headings`` are titles by the offset at which their line begins in ``text``."""

    text: str
    segments: list[Segment]
    headings: dict[int, str]


def page_text(source: str) -> PageText:
    """The main text, or all visible text where no main text is found; empty for a page without any."""
    visible = _Stripper(source)
    # deduplicate=True would return nothing for a page that this process has seen three times.
    main = trafilatura.extract(source, deduplicate=False, include_comments=False, include_tables=True)
    if not main or not main.strip():
        return PageText(visible.text, visible.segments, {start: title for start, _, title in visible.headings})
    return _aligned(main, visible)


class _Stripper(HTMLParser):
    """All visible text and, for each run of it, the run of the source."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.segments: list[Segment] = []
        self.headings: list[tuple[int, int, str]] = []
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

    def _offset(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column


@dataclass
class _Squeezed:
    """Text without white space and invisible characters, and where each character left stood."""

    text: str = ""
    positions: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, text: str, offset: int = 0) -> "_Squeezed":
        kept = [i for i, c in enumerate(text) if not c.isspace() and c not in _INVISIBLE]
        return cls("".join(text[i] for i in kept), [offset + i for i in kept])


@dataclass(frozen=True)
class _Match:
    """``line``'s squeezed characters stand at ``at`` of the squeezed visible text."""

    line: _Squeezed
    at: int

    @property
    def end(self) -> int:
        return self.at + len(self.line.text)


def _aligned(main: str, visible: _Stripper) -> PageText:
    whole = _Squeezed.of(visible.text)
    matches = _match_lines(list(_lines(main)), whole.text)
    origin = _Origin(visible)
    segments = _segments(main, matches, whole, origin)
    return PageText(main, segments, _headings(main, matches, whole, visible))


def _lines(main: str) -> Iterator[_Squeezed]:
    """Each line, and each cell of a table row, without the list dash that trafilatura puts before items."""
    at = 0
    for line in main.splitlines(keepends=True):
        start = 2 if line.startswith("- ") else 0
        for part in line[start:].split("|"):
            squeezed = _Squeezed.of(part, at + start)
            if squeezed.text:
                yield squeezed
            start += len(part) + 1
        at += len(line)


def _match_lines(lines: list[_Squeezed], text: str) -> list[_Match]:
    """Lines that stand in the page once are anchors; the others are looked for between the anchors around them."""
    anchors = _ascending([_Match(line, text.find(line.text)) for line in lines if text.count(line.text) == 1])
    by_line = {id(match.line): match for match in anchors}
    upper, limits = len(text), []
    for line in reversed(lines):
        limits.append(upper)
        upper = by_line[id(line)].at if id(line) in by_line else upper
    found: list[_Match] = []
    cursor = 0
    for line, limit in zip(lines, reversed(limits), strict=True):
        match = by_line.get(id(line))
        if match is None and (at := text.find(line.text, cursor, limit)) >= 0:
            match = _Match(line, at)
        if match is not None:
            found.append(match)
            cursor = match.end
    return found


def _ascending(matches: list[_Match]) -> list[_Match]:
    """The longest run of matches that stand in the page in the order of the text (patience sorting)."""
    tops: list[int] = []
    piles: list[int] = []
    before: list[int] = []
    for index, match in enumerate(matches):
        pile = bisect_left(tops, match.at)
        tops[pile:] = [match.at, *tops[pile + 1 :]]
        piles[pile:] = [index, *piles[pile + 1 :]]
        before.append(piles[pile - 1] if pile else -1)
    chain: list[_Match] = []
    index = piles[-1] if piles else -1
    while index >= 0:
        chain.append(matches[index])
        index = before[index]
    return chain[::-1]


class _Origin:
    """The range of the source behind a character of the visible text."""

    def __init__(self, visible: _Stripper) -> None:
        self._segments = visible.segments
        self._starts = [segment.text_start for segment in visible.segments]

    def of(self, position: int) -> tuple[int, int]:
        segment = self._segments[bisect_left(self._starts, position + 1) - 1]
        if segment.text_length == segment.raw_length:
            start = segment.raw_start + position - segment.text_start
            return start, start + 1
        return segment.raw_start, segment.raw_start + segment.raw_length


def _segments(main: str, matches: list[_Match], whole: _Squeezed, origin: _Origin) -> list[Segment]:
    """One for each run that stands together on both sides; what wasn't found lies somewhere between its neighbours."""
    points = [
        (position, *origin.of(whole.positions[match.at + k]))
        for match in matches
        for k, position in enumerate(match.line.positions)
    ]
    last_raw = origin.of(whole.positions[-1])[1] if whole.positions else 0
    segments: list[Segment] = []
    text_at, raw_at = 0, 0
    for position, raw_start, raw_end in [*points, (len(main), last_raw, last_raw)]:
        if position > text_at:
            segments.append(_bounding(text_at, position, raw_at, raw_start))
        if position == len(main):
            break
        last = segments[-1] if segments else None
        if last and raw_end - raw_start == 1 and _continues(last, position, raw_start):
            segments[-1] = Segment(last.text_start, last.text_length + 1, last.raw_start, last.raw_length + 1)
        else:
            segments.append(Segment(position, 1, raw_start, raw_end - raw_start))
        text_at, raw_at = position + 1, raw_end
    return segments


def _bounding(text_at: int, text_end: int, raw_at: int, raw_end: int) -> Segment:
    return Segment(text_at, text_end - text_at, raw_at, max(0, raw_end - raw_at))


def _continues(last: Segment, position: int, raw_start: int) -> bool:
    """Whether the next letter follows the last segment on both sides."""
    literal = last.text_length == last.raw_length
    return literal and (last.text_start + last.text_length, last.raw_start + last.raw_length) == (position, raw_start)


def _headings(main: str, matches: list[_Match], whole: _Squeezed, visible: _Stripper) -> dict[int, str]:
    """Lines of the main text that stand inside an h1 to h6."""
    starts = [start for start, _, _ in visible.headings]
    found: dict[int, str] = {}
    for match in matches:
        position = whole.positions[match.at]
        index = bisect_left(starts, position + 1) - 1
        if index >= 0 and position < visible.headings[index][1]:
            line_start = main.rfind("\n", 0, match.line.positions[0]) + 1
            found.setdefault(line_start, visible.headings[index][2])
    return found
