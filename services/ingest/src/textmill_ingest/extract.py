"""From a document's bytes to its passages, by media type. Reads a stream; knows neither stores nor HTTP.

Cost: plain text and Markdown, JSON lines and CSV are read piece by piece, in the memory of one passage or one row.
A web page is held whole, some hundred times its size, and trafilatura's time grows with its square; so it may have at
most 8 MiB (a minute or two).
"""

from collections.abc import Iterable, Iterator

from textmill.contracts.base import content_id
from textmill.contracts.documents import Document, Passage
from textmill.contracts.jobs import SplitRule
from textmill.errors import BadRequest
from textmill_ingest.decoding import Piece, Ruler, decode_pieces
from textmill_ingest.html_text import page_text
from textmill_ingest.lines import lines_of
from textmill_ingest.rows import Row, csv_rows, json_rows
from textmill_ingest.split import MarkdownHeadings, chapter_heading, language_of, split
from textmill_ingest.units import MappedUnit, PlainUnit, Unit

MAX_PAGE_BYTES = 8 * 1024 * 1024


class PageTooLarge(BadRequest):
    """A web page that would take too much memory to read."""

    status = 422


def passages_of(document: Document, chunks: Iterable[bytes], rule: SplitRule) -> Iterator[Passage]:
    """All passages in the order of the original. The same document and rule give the same passages and ids.

    Raises:
        UndecodableText, BadRow, PageTooLarge: the document isn't what its media type and encoding say.
    """
    index = 0
    for unit in _units(document, chunks):
        for cut in split(unit.chunks(), rule, unit.heading):
            text = cut.text.replace("\r\n", "\n").replace("\r", "\n")
            span = unit.place(cut.start, cut.end)
            yield Passage(
                passage_id=content_id("psg", document.document_id, f"{span.byte_start}-{span.byte_end}", text),
                document_id=document.document_id,
                document_sha256=document.sha256,
                index=index,
                text=text,
                language=language_of(text),
                heading=cut.heading,
                span=span,
                exact=text == cut.text and unit.literal(cut.start, cut.end, text),
            )
            index += 1


def _units(document: Document, chunks: Iterable[bytes]) -> Iterator[Unit]:
    ruler = Ruler(document.encoding.name)
    pieces = decode_pieces(chunks, document.encoding.name)
    match document.media_type:
        case "text/plain":
            yield PlainUnit(pieces, ruler, chapter_heading)
        case "text/markdown":
            yield PlainUnit(pieces, ruler, MarkdownHeadings())
        case "text/html":
            yield _page_unit(document, pieces, ruler)
        case "application/jsonl":
            yield from (_row_unit(row, ruler) for row in json_rows(lines_of(_measured(pieces, ruler))))
        case "text/csv":
            yield from (_row_unit(row, ruler) for row in csv_rows(lines_of(_measured(pieces, ruler))))


def _measured(pieces: Iterable[Piece], ruler: Ruler) -> Iterator[str]:
    for piece in pieces:
        ruler.feed(piece)
        yield piece.text


def _row_unit(row: Row, ruler: Ruler) -> Unit:
    return MappedUnit(row.text, row.segments, row.raw, row.raw_start, ruler)


def _page_unit(document: Document, pieces: Iterable[Piece], ruler: Ruler) -> Unit:
    if document.size_bytes > MAX_PAGE_BYTES:
        raise PageTooLarge(
            f"{document.name!r} has {document.size_bytes} bytes, a web page may have {MAX_PAGE_BYTES}; "
            "send it as text/plain"
        )
    source = "".join(_measured(pieces, ruler))
    page = page_text(source)
    return MappedUnit(page.text, page.segments, source, 0, ruler, page.headings)
