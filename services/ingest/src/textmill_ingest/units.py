"""The text of a document as its passages are cut from it: in units that no passage crosses, each with its way back.

A plain text is one unit and is read piece by piece; a row of a table or a web page is a unit held in memory. Knows
nothing of how a unit is divided.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from textmill.contracts.documents import Span
from textmill_ingest.decoding import Piece, Ruler


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of extracted text and the run of the original it came from; letter for letter where lengths agree."""

    text_start: int
    text_length: int
    raw_start: int
    raw_length: int


class HeadingRule(Protocol):
    def __call__(self, line: str, start: int) -> str | None:
        """The title, if this line (at this offset of the unit) is a heading. Is asked about every line, in order."""
        ...


class Unit(Protocol):
    heading: HeadingRule

    def chunks(self) -> Iterator[str]:
        """The text in order. Can be read once."""
        ...

    def place(self, start: int, end: int) -> Span:
        """Where ``text[start:end]`` stands in the original. Starts and ends must ascend."""
        ...

    def literal(self, start: int, end: int, text: str) -> bool:
        """Whether the original's characters there are ``text`` to the letter."""
        ...


class PlainUnit:
    """Text that is its own original. Constant memory: what was placed is forgotten."""

    def __init__(self, pieces: Iterable[Piece], ruler: Ruler, heading: HeadingRule) -> None:
        self._pieces = pieces
        self._ruler = ruler
        self.heading = heading

    def chunks(self) -> Iterator[str]:
        for piece in self._pieces:
            self._ruler.feed(piece)
            yield piece.text

    def place(self, start: int, end: int) -> Span:
        byte_start = self._ruler.byte_at(start)
        return Span(char_start=start, char_end=end, byte_start=byte_start, byte_end=self._ruler.byte_at(end))

    def literal(self, start: int, end: int, text: str) -> bool:
        return "\r" not in text


@dataclass
class MappedUnit:
    """Extracted text and the segments that lead back. ``raw`` is the stretch of the original, from ``raw_start`` on."""

    text: str
    segments: Sequence[Segment]
    raw: str
    raw_start: int
    ruler: Ruler
    headings: Mapping[int, str] = field(default_factory=dict)
    heading: HeadingRule = field(init=False)
    _starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._starts = [segment.text_start for segment in self.segments]
        self.heading = lambda line, start: self.headings.get(start)

    def chunks(self) -> Iterator[str]:
        yield self.text

    def place(self, start: int, end: int) -> Span:
        first, last = self._range(start, end)
        byte_start = self.ruler.byte_at(first)
        return Span(char_start=first, char_end=last, byte_start=byte_start, byte_end=self.ruler.byte_at(last))

    def literal(self, start: int, end: int, text: str) -> bool:
        first, last = self._range(start, end)
        return self.raw[first - self.raw_start : last - self.raw_start] == text

    def _range(self, start: int, end: int) -> tuple[int, int]:
        """From the original of the first character to the end of the original of the last."""
        head, tail = self._segment_at(start), self._segment_at(end - 1)
        first, last = head.raw_start, tail.raw_start + tail.raw_length
        if head.text_length == head.raw_length:
            first += start - head.text_start
        if tail.text_length == tail.raw_length:
            last = tail.raw_start + end - tail.text_start
        return first, max(first, last)

    def _segment_at(self, position: int) -> Segment:
        return self.segments[max(0, bisect_right(self._starts, position) - 1)]
