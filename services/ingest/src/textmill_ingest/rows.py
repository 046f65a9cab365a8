"""Texts out of JSON lines and CSV, each with the segments that lead from it back into its row.

The standard library's parsers don't tell where a value stands, so the walk over a row is ours; values are decoded by
``json``. Knows nothing of files or passages.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder

from textmill.errors import BadRequest
from textmill_ingest.units import Segment

TEXT_FIELDS = ("text", "content", "body")
MAX_ROW_CHARACTERS = 64 * 1024 * 1024
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_DECODER = JSONDecoder()


class BadRow(BadRequest):
    """A row that isn't what its file's type promises."""

    status = 422


@dataclass(frozen=True)
class Row:
    """The text of one row. ``raw`` is the stretch of the file that the segments point into, from ``raw_start`` on."""

    text: str
    segments: Sequence[Segment]
    raw: str
    raw_start: int


def json_rows(lines: Iterable[str], fields: Sequence[str] = TEXT_FIELDS) -> Iterator[Row]:
    """One record a line; its text is the first of ``fields`` it has. Blank lines are skipped.

    Raises:
        BadRow: naming the line, if it is no JSON object or has no such text.
    """
    start = 0
    for number, line in enumerate(_whole_lines(lines), 1):
        if not line.isspace():
            yield _json_row(line, start, number, fields)
        start += len(line)


def _json_row(line: str, start: int, number: int, fields: Sequence[str]) -> Row:
    try:
        values = {key: (value, at, end) for key, value, at, end in _members(line)}
    except (JSONDecodeError, RecursionError) as exc:
        raise BadRow(f"line {number} is no JSON object: {exc}; JSONL has one object a line") from exc
    name = next((field for field in fields if field in values), None)
    if name is None:
        raise BadRow(f"line {number} has no text: its fields are {_names(values)}, one of {_names(fields)} is needed")
    text, at, end = values[name]
    if not isinstance(text, str):
        raise BadRow(f"line {number}: field {name!r} is {type(text).__name__}, not a string")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BadRow(f"line {number}: field {name!r} holds half a surrogate pair, which is no character")
    return Row(text, list(_unescaped(line, at + 1, end - 1, start, _ESCAPE)), line, start)


def _members(line: str) -> Iterator[tuple[str, object, int, int]]:
    """Keys of the object in this line, with each value and where it stands."""
    at = _behind(line, _skip(line, 0), "{")
    more = line[at : at + 1] != "}"
    while more:
        _behind(line, at, '"')
        key, at = _DECODER.raw_decode(line, at)
        begin = _behind(line, _skip(line, at), ":")
        value, end = _DECODER.raw_decode(line, begin)
        yield key, value, begin, end
        at = _skip(line, end)
        more = line[at : at + 1] == ","
        at = _skip(line, at + more)
    if _behind(line, at, "}") != len(line):
        raise JSONDecodeError("more after the object", line, at)


def _behind(line: str, at: int, what: str) -> int:
    """Where the next token begins behind ``what``, which must stand at ``at``."""
    if line[at : at + 1] != what:
        raise JSONDecodeError(f"{what} expected", line, at)
    return _skip(line, at + 1)


def _skip(line: str, at: int) -> int:
    match = _SPACE.match(line, at)
    return match.end() if match else at


def _unescaped(raw: str, at: int, end: int, offset: int, escape: re.Pattern[str]) -> Iterator[Segment]:
    """Segments of the value between ``at`` and ``end``, where each match of ``escape`` stands for one character."""
    text_at = 0
    for match in escape.finditer(raw, at, end):
        if match.start() > at:
            yield Segment(text_at, match.start() - at, offset + at, match.start() - at)
            text_at += match.start() - at
        yield Segment(text_at, 1, offset + match.start(), len(match.group()))
        text_at, at = text_at + 1, match.end()
    if end > at or text_at == 0:
        yield Segment(text_at, end - at, offset + at, end - at)


# -- CSV ---------------------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')
_DOUBLED = re.compile('""')
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class _Cell:
    raw: str
    start: int
    quoted: bool

    @property
    def text(self) -> str:
        return self.raw.replace('""', '"') if self.quoted else self.raw


def csv_rows(lines: Iterable[str], fields: Sequence[str] = TEXT_FIELDS) -> Iterator[Row]:
    """RFC 4180 with a header row; comma, semicolon or tab, whichever the header has most of.

    Raises:
        BadRow: naming the line, if no column is one of ``fields`` or a row hasn't as many cells as the header.
    """
    cells = _csv_cells(_whole_lines(lines))
    _, head = next(cells, (0, []))
    names = [cell.text.strip().lower() for cell in head]
    name = next((field for field in fields if field in names), None)
    if name is None:
        raise BadRow(f"line 1 names the columns {_names(names)}; one of {_names(fields)} is needed for the text")
    column = names.index(name)
    for number, row in cells:
        if len(row) != len(names):
            raise BadRow(
                f"the row that ends in line {number} has {len(row)} cells, the header has {len(names)}; "
                "a cell that holds the delimiter needs quotes"
            )
        cell = row[column]
        escape = _DOUBLED if cell.quoted else re.compile(r"(?!)")
        yield Row(cell.text, list(_unescaped(cell.raw, 0, len(cell.raw), cell.start, escape)), cell.raw, cell.start)


def _csv_cells(lines: Iterable[str]) -> Iterator[tuple[int, list[_Cell]]]:
    """Rows of cells, each with the number of the line it ends in. A quoted cell may hold line ends."""
    reader: _RowReader | None = None
    start = number = 0
    for number, line in enumerate(lines, 1):
        reader = reader or _RowReader(max(_DELIMITERS, key=line.count))
        if not (line.isspace() and reader.between_rows) and (row := reader.read(line, start, number)) is not None:
            yield number, row
        start += len(line)
    if reader is not None and not reader.between_rows:
        raise BadRow(f"the quote opened in line {reader.opened_in} is never closed")


class _RowReader:
    """Takes lines, gives a row when one is complete."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._bare = re.compile(rf"[^{delimiter}\r\n]*")
        self._row: list[_Cell] = []
        self._open: list[str] = []
        self._open_start = 0
        self._open_length = 0
        self.opened_in = 0

    @property
    def between_rows(self) -> bool:
        return not self._open

    def read(self, line: str, start: int, number: int) -> list[_Cell] | None:
        at = self._quoted(line, 0, number) if self._open else 0
        while at is not None:
            if at < 0:
                row, self._row = self._row, []
                return row
            at = self._cell(line, at, start, number)
        return None

    def _cell(self, line: str, at: int, start: int, number: int) -> int | None:
        """Reads the cell at ``at``; where the next begins, -1 at the row's end, None if a quote stays open."""
        if line[at : at + 1] == '"':
            self._open_start, self.opened_in, self._open_length = start + at + 1, number, 0
            return self._quoted(line, at + 1, number)
        match = self._bare.match(line, at)
        end = match.end() if match else at
        self._row.append(_Cell(line[at:end], start + at, quoted=False))
        return self._after(line, end, number)

    def _quoted(self, line: str, at: int, number: int) -> int | None:
        match = _QUOTED.match(line, at)
        end = match.end() if match else at
        self._open.append(line[at:end])
        self._open_length += end - at
        if end == len(line):
            if self._open_length > MAX_ROW_CHARACTERS:
                raise BadRow(f"the cell that opens in line {self.opened_in} exceeds {MAX_ROW_CHARACTERS} characters")
            return None
        self._row.append(_Cell("".join(self._open), self._open_start, quoted=True))
        self._open = []
        return self._after(line, end + 1, number)

    def _after(self, line: str, at: int, number: int) -> int:
        if line[at : at + 1] == self._delimiter:
            return at + 1
        if line[at:].strip("\r\n") == "":
            return -1
        raise BadRow(f"line {number}: text follows a closing quote; double the quotes inside a quoted cell")


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    """Joins the fragments that over-long lines come in.

    Raises:
        BadRow: a line is longer than 64 Mi characters, all of which would have to be held.
    """
    parts: list[str] = []
    held = 0
    for fragment in lines:
        parts.append(fragment)
        held += len(fragment)
        if held > MAX_ROW_CHARACTERS:
            raise BadRow(f"a row is longer than {MAX_ROW_CHARACTERS} characters; is this really one record a line?")
        if fragment.endswith(("\n", "\r")):
            yield "".join(parts)
            parts, held = [], 0
    if parts:
        yield "".join(parts)


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
