"""multipart/form-data, file by file, as a stream: nothing is spooled to disk or held beyond a chunk (RFC 7578)."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from textmill.errors import BadRequest

_Event = tuple[Literal["header", "begin", "data", "end", "close"], bytes]


@dataclass(frozen=True)
class FilePart:
    """One file. ``chunks`` must be read to its end before the next part is asked for."""

    name: str
    content_type: str
    chunks: AsyncIterator[bytes]


def boundary_of(content_type: str) -> bytes:
    """Raises ``BadRequest`` when the header names none."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise BadRequest("Content-Type multipart/form-data names no boundary")
    return boundary


class FileReader:
    """Reads the files of a multipart body in the order they come."""

    def __init__(self, body: AsyncIterator[bytes], boundary: bytes) -> None:
        self._body = body
        self._events: deque[_Event] = deque()
        self._header: list[bytes] = [b"", b""]
        try:
            self._parser = MultipartParser(boundary, self._callbacks())  # type: ignore[arg-type]
        except FormParserError as exc:
            raise BadRequest(f"multipart boundary refused: {exc}") from exc

    async def files(self) -> AsyncIterator[FilePart]:
        """
        Raises:
            BadRequest: the body is no multipart form, ends too early, or has a field that isn't a file.
        """
        headers: dict[str, str] = {}
        while (event := await self._next())[0] != "close":
            if event[0] == "header":
                field, _, value = event[1].decode("latin-1").partition(":")
                headers[field.lower()] = value.strip()
            elif event[0] == "begin":
                yield FilePart(
                    _file_name(headers.get("content-disposition", "")), headers.get("content-type", ""), self._data()
                )
                headers = {}

    async def _data(self) -> AsyncIterator[bytes]:
        while (event := await self._next())[0] == "data":
            yield event[1]

    async def _next(self) -> _Event:
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                raise BadRequest("the multipart body ends before its closing boundary; its last part was not kept")
            try:
                self._parser.write(chunk)
            except FormParserError as exc:
                raise BadRequest(f"the body is no multipart/form-data: {exc}") from exc
        return self._events.popleft()

    def _callbacks(self) -> dict[str, object]:
        def header_field(data: bytes, start: int, end: int) -> None:
            self._header[0] += data[start:end]

        def header_value(data: bytes, start: int, end: int) -> None:
            self._header[1] += data[start:end]

        def header_end() -> None:
            self._events.append(("header", b":".join(self._header)))
            self._header = [b"", b""]

        return {
            "on_header_field": header_field,
            "on_header_value": header_value,
            "on_header_end": header_end,
            "on_headers_finished": lambda: self._events.append(("begin", b"")),
            "on_part_data": lambda data, start, end: self._events.append(("data", data[start:end])),
            "on_part_end": lambda: self._events.append(("end", b"")),
            "on_end": lambda: self._events.append(("close", b"")),
        }


def _file_name(disposition: str) -> str:
    options = parse_options_header(disposition)[1]
    name = options.get(b"filename")
    if not name:
        field = options.get(b"name", b"").decode("utf-8", "replace")
        raise BadRequest(f"form field {field!r} is no file; give media_type and encoding in the query, not in the form")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")
