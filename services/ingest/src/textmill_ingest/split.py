"""Divides text into pieces small enough to ask about, as a stream, and loses nothing but white space between them.

A ``SplitRule`` says where blocks end (at blank lines, before headings, or nowhere); a block longer than
``max_characters`` is cut at the last sentence end that fits. What is cut depends on the text alone, not on the chunks
it comes in. Memory: ``max_characters`` and one line. Knows nothing of documents.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from textmill.contracts.documents import Language
from textmill.contracts.jobs import SplitRule
from textmill_ingest.lines import lines_of
from textmill_ingest.units import HeadingRule

_CLOSING = r"[\"'”’」』）)\]》】]*"
_SENTENCE_END = re.compile(rf"[。！？；…]+{_CLOSING}|[.!?]+{_CLOSING}(?=\s|\Z)|(?:\r\n|\r|\n)[^\S\r\n]*(?=[\r\n])")
# A full stop behind these ends no sentence: "Fig. 3", "e.g. this", "J. Legge", and "1. " at the head of a line.
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|Nos|Fig|Figs|Eq|vs|cf|ca|al|pp|vol|ch|ed|approx|Inc|Ltd|Co|e\.g|i\.e|[A-Z])"
    r"|(?:^|[\r\n])[ \t]*\d{1,3})\.$"
)
_ABBREVIATION_REACH = 16
_LOOKAHEAD = 16
"""Characters read beyond the limit, to see the closing quotes and the white space behind a sentence."""
_LINE_END = re.compile(r"[\r\n]+")
_PAUSE = re.compile(r"[，、,：:]+|\s+")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")

_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*\s*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CHAPTER = re.compile(
    r"\s*(第\s*[〇零一二三四五六七八九十百千两0-9０-９]{1,7}\s*[章节節回卷篇部卦集讲講课課条條](?:[\s:：、·].{0,60}|\S{0,12})?)\s*$"
)


@dataclass(frozen=True, slots=True)
class Cut:
    """One piece: ``text`` is what stands from ``start`` to ``end``, which are neither of them at white space."""

    start: int
    end: int
    text: str
    heading: str | None


class MarkdownHeadings:
    """``# Title`` outside fenced code, and Chinese chapter lines. Underlined headings aren't recognised."""

    def __init__(self) -> None:
        self._fence = ""

    def __call__(self, line: str, start: int) -> str | None:
        fence = _FENCE.match(line)
        if fence and not self._fence:
            self._fence = fence.group(1)
        elif fence and fence.group(1).startswith(self._fence):
            self._fence = ""
        if fence or self._fence:
            return None
        match = _ATX.match(line)
        return (match.group(1) or None) if match else chapter_heading(line, start)


def chapter_heading(line: str, start: int) -> str | None:
    """A short line that opens with 第…章, 第…回, 第…卦 and the like, and isn't a sentence."""
    match = _CHAPTER.match(line) if "第" in line[:8] else None
    return None if match is None or match.group(1).endswith(("。", "！", "？", "；", "，")) else match.group(1)


def split(chunks: Iterable[str], rule: SplitRule, heading: HeadingRule) -> Iterator[Cut]:
    """All of the text, save white space, in order."""
    block = _Block(rule.max_characters)
    titles: deque[tuple[int, str]] = deque([(0, "")])
    at, line_opens = 0, True
    for line in lines_of(chunks):
        title = heading(line, at) if line_opens else None
        blank = line_opens and line.isspace()
        if (rule.method == "headings" and title) or (rule.method == "blank_lines" and blank):
            yield from _titled(block.close(), titles)
        if title:
            titles.append((at, title))
        block.add(line, at)
        yield from _titled(block.overflow(), titles)
        at, line_opens = at + len(line), line.endswith(("\n", "\r"))
    yield from _titled(block.close(), titles)


def _titled(pieces: Iterable[tuple[int, str]], titles: deque[tuple[int, str]]) -> Iterator[Cut]:
    """Gives each piece the last heading that stands at or before its start."""
    for start, text in pieces:
        while len(titles) > 1 and titles[1][0] <= start:
            titles.popleft()
        yield Cut(start, start + len(text), text, titles[0][1] or None)


class _Block:
    """Text that belongs together, until it has grown longer than the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []
        self._start = 0
        self._length = 0

    def add(self, line: str, at: int) -> None:
        if not self._parts:
            self._start, self._length = at, 0
        self._parts.append(line)
        self._length += len(line)

    def overflow(self) -> Iterator[tuple[int, str]]:
        """Pieces that can be cut off the front already, since what follows can't change them."""
        if self._length > 2 * (self._limit + _LOOKAHEAD):
            yield from self._cut(self._limit + _LOOKAHEAD)

    def close(self) -> Iterator[tuple[int, str]]:
        yield from self._cut(0)
        self._parts = []

    def _cut(self, keep: int) -> Iterator[tuple[int, str]]:
        """Cut pieces off the front while more than ``keep`` characters are left."""
        text, at = "".join(self._parts), 0
        while True:
            at = _skip_space(text, at)
            if at == len(text) or (keep and len(text) - at <= keep):
                break
            window = text[at : at + self._limit + _LOOKAHEAD]
            length = _piece_length(window, self._limit)
            yield self._start + at, window[:length].rstrip()
            at += length
        self._parts = [text[at:]] if at < len(text) else []
        self._start, self._length = self._start + at, len(text) - at


def _piece_length(window: str, limit: int) -> int:
    """How much of ``window``, which begins the rest of a block, to cut off: at most ``limit``, if not all of it."""
    if len(window.rstrip()) <= limit:
        return len(window)
    ends = [match.span() for match in _SENTENCE_END.finditer(window) if match.end() <= limit]
    best = next((end for stop, end in reversed(ends) if not _is_abbreviation(window, stop)), 0)
    return best or _last(_LINE_END, window, limit) or _last(_PAUSE, window, limit) or limit


def _is_abbreviation(window: str, stop: int) -> bool:
    if window[stop] != ".":
        return False
    line = max(window.rfind("\n", 0, stop), window.rfind("\r", 0, stop), stop - _ABBREVIATION_REACH, 0)
    return _ABBREVIATION.search(window[line : stop + 1]) is not None


def _last(pattern: re.Pattern[str], window: str, limit: int) -> int:
    """The last match in the second half that ends within the limit; 0 if there is none."""
    return max((m.end() for m in pattern.finditer(window, limit // 2, limit) if m.end() <= limit), default=0)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def language_of(text: str) -> Language:
    """``zh`` if it has more Han characters than words in Latin letters."""
    return "zh" if len(_HAN.findall(text)) > len(_WORD.findall(text)) else "en"
