"""Which media types ingest takes, and how a given type or a name's extension leads to one of them."""

from email.message import Message
from typing import get_args

from textmill.contracts.documents import MediaType
from textmill.errors import BadRequest

EXTENSIONS: dict[str, MediaType] = {
    "txt": "text/plain",
    "text": "text/plain",
    "md": "text/markdown",
    "markdown": "text/markdown",
    "html": "text/html",
    "htm": "text/html",
    "xhtml": "text/html",
    "jsonl": "application/jsonl",
    "ndjson": "application/jsonl",
    "csv": "text/csv",
}
_ALIASES: dict[str, MediaType] = {
    "text/x-markdown": "text/markdown",
    "application/xhtml+xml": "text/html",
    "application/x-ndjson": "application/jsonl",
    "application/ndjson": "application/jsonl",
    "application/json-lines": "application/jsonl",
    "application/x-jsonlines": "application/jsonl",
    "application/jsonlines": "application/jsonl",
    "application/csv": "text/csv",
    **{allowed: allowed for allowed in get_args(MediaType)},
}
# What clients send when they don't know: the name decides.
_UNSAID = {"", "application/octet-stream", "application/x-www-form-urlencoded", "application/vnd.ms-excel"}
MAX_NAME_BYTES = 255


class UnsupportedMedia(BadRequest):
    """The bytes are of a kind that holds no text ingest can read."""

    status = 415


def parse_content_type(value: str) -> tuple[str, str | None]:
    """The bare media type in lower case, and its charset if it names one."""
    header = Message()
    header["Content-Type"] = value or "application/octet-stream"
    charset = header.get_param("charset")
    return header.get_content_type(), charset if isinstance(charset, str) and charset else None


def media_type_of(given: str, name: str) -> MediaType:
    """By the type the client gives, else by the name's extension.

    Raises:
        UnsupportedMedia: neither leads to a media type that is taken.
    """
    if given not in _UNSAID:
        if given in _ALIASES:
            return _ALIASES[given]
        raise UnsupportedMedia(f"{name!r} is of media type {given!r}, which holds no text here; {_allowed()}")
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if extension in EXTENSIONS:
        return EXTENSIONS[extension]
    raise UnsupportedMedia(f"{name!r} has no media type and an unknown extension {extension!r}; {_allowed()}")


def clean_name(name: str) -> str:
    """The last part of a path, without control characters.

    Raises:
        BadRequest: nothing is left, or more than 255 bytes.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    last = "".join(c for c in last if c.isprintable()).strip()
    if not last or last in {".", ".."}:
        raise BadRequest(f"the document name {name!r} is empty; give ?name=<file name>")
    if len(last.encode()) > MAX_NAME_BYTES:
        raise BadRequest(f"the document name has {len(last.encode())} bytes; at most {MAX_NAME_BYTES} are allowed")
    return last


def _allowed() -> str:
    types, extensions = ", ".join(get_args(MediaType)), ", ".join(f".{e}" for e in EXTENSIONS)
    return f"allowed are {types} (or a name ending in {extensions}); say which with ?media_type= or Content-Type"
