"""The main text of a web page, with the way back into its markup.

trafilatura finds the main text but not where it stood. So the page is also read by a tag stripper that keeps offsets,
and the lines trafilatura gives are found again in what the stripper saw. Knows nothing of files.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import trafilatura

from textmill_ingest.html_strip import VisibleText
from textmill_ingest.units import Segment

_SEARCH_BUDGET = 500_000_000
"""Characters of the page to look through for lines that are no blocks of their own: about a second's work."""
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")


@dataclass(frozen=True)
class PageText:
    """``headings`` are titles by the offset at which their line begins in ``text``."""

    text: str
    segments: list[Segment]
    headings: dict[int, str]


def page_text(source: str) -> PageText:
    """The main text, or all visible text where no main text is found; empty for a page without any."""
    visible = VisibleText(source)
    # deduplicate=True would return nothing for a page that this process has seen three times.
    main = trafilatura.extract(source, deduplicate=False, include_comments=False, include_tables=True)
    if not main or not main.strip():
        return PageText(visible.text, visible.segments, {start: title for start, _, title in visible.headings})
    return _aligned(main, visible)


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


def _aligned(main: str, visible: VisibleText) -> PageText:
    whole = _Squeezed.of(visible.text)
    matches = _match_lines(list(_lines(main)), whole, visible.blocks)
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


def _match_lines(lines: list[_Squeezed], whole: _Squeezed, blocks: list[int]) -> list[_Match]:
    """Lines that are a block of the page, and the only one like it, are anchors; others are sought in between."""
    anchors = {id(match.line): match for match in _ascending(list(_unique_blocks(lines, whole, blocks)))}
    limits = [len(whole.text)]
    for line in reversed(lines):
        limits.append(anchors[id(line)].at if id(line) in anchors else limits[-1])
    found: list[_Match] = []
    cursor, budget = 0, _SEARCH_BUDGET
    for line, limit in zip(lines, limits[-2::-1], strict=True):
        match = anchors.get(id(line))
        if match is None and budget > 0:
            at = whole.text.find(line.text, cursor, limit)
            budget -= (at if at >= 0 else limit) - cursor
            match = _Match(line, at) if at >= 0 else None
        if match is not None:
            found.append(match)
            cursor = match.end
    return found


def _unique_blocks(lines: list[_Squeezed], whole: _Squeezed, blocks: list[int]) -> Iterator[_Match]:
    places: dict[str, int] = {}
    starts = [bisect_left(whole.positions, block) for block in blocks]
    for start, end in pairwise([*starts, len(whole.text)]):
        text = whole.text[start:end]
        places[text] = -1 if text in places else start
    for line in lines:
        at = places.get(line.text, -1)
        if at >= 0:
            yield _Match(line, at)


def _ascending(matches: list[_Match]) -> list[_Match]:
    """The longest run of matches that stand in the page in the order of the text (patience sorting)."""
    tops: list[int] = []
    piles: list[int] = []
    before: list[int] = []
    for index, match in enumerate(matches):
        pile = bisect_left(tops, match.at)
        before.append(piles[pile - 1] if pile else -1)
        tops[pile : pile + 1] = [match.at]
        piles[pile : pile + 1] = [index]
    chain: list[_Match] = []
    index = piles[-1] if piles else -1
    while index >= 0:
        chain.append(matches[index])
        index = before[index]
    return chain[::-1]


class _Origin:
    """The range of the source behind a character of the visible text."""

    def __init__(self, visible: VisibleText) -> None:
        self._segments = visible.segments
        self._starts = [segment.text_start for segment in visible.segments]

    def of(self, position: int) -> tuple[int, int]:
        segment = self._segments[bisect_left(self._starts, position + 1) - 1]
        if segment.text_length == segment.raw_length:
            start = segment.raw_start + position - segment.text_start
            return start, start + 1
        return segment.raw_start, segment.raw_start + segment.raw_length


def _segments(main: str, matches: list[_Match], whole: _Squeezed, origin: _Origin) -> list[Segment]:
    """Runs that stand together on both sides; what wasn't found lies somewhere between its neighbours."""
    segments: list[Segment] = []
    run = Segment(0, 0, 0, 0)
    for position, raw_start, raw_end in _letters(matches, whole, origin):
        text_gap, raw_gap = position - run.text_start - run.text_length, raw_start - run.raw_start - run.raw_length
        if text_gap == raw_gap and raw_end - raw_start == 1 and run.text_length == run.raw_length:
            length = position + 1 - run.text_start
            run = Segment(run.text_start, length, run.raw_start, length)
            continue
        segments.append(run)
        if text_gap:
            segments.append(_between(run, position, raw_start))
        run = Segment(position, 1, raw_start, raw_end - raw_start)
    segments.append(run)
    if run.text_start + run.text_length < len(main):
        segments.append(_between(run, len(main), run.raw_start + run.raw_length))
    return [segment for segment in segments if segment.text_length]


def _letters(matches: list[_Match], whole: _Squeezed, origin: _Origin) -> Iterator[tuple[int, int, int]]:
    """Each letter of the main text that was found: its offset there, its range in the source."""
    for match in matches:
        for k, position in enumerate(match.line.positions):
            yield position, *origin.of(whole.positions[match.at + k])


def _between(run: Segment, text_end: int, raw_end: int) -> Segment:
    """What lies behind ``run`` on both sides."""
    text_start, raw_start = run.text_start + run.text_length, run.raw_start + run.raw_length
    return Segment(text_start, text_end - text_start, raw_start, max(0, raw_end - raw_start))


def _headings(main: str, matches: list[_Match], whole: _Squeezed, visible: VisibleText) -> dict[int, str]:
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
