"""Builders that several tests of ingest share."""

import hashlib
import threading
from collections.abc import Iterable, Iterator

from textmill.contracts.base import content_id
from textmill.contracts.documents import Document, Encoding, MediaType, Passage
from textmill.contracts.jobs import SplitRule
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_ingest.documents import Source, keep_document
from textmill_ingest.encoding import EncodingProbe, detect_encoding
from textmill_ingest.extract import passages_of


def found_encoding(data: bytes, chunk_bytes: int = 1 << 16) -> Encoding:
    """As an upload finds it, fed in chunks."""
    probe = EncodingProbe()
    for chunk in chunked(data, chunk_bytes):
        probe.feed(chunk)
    return probe.finish() or detect_encoding(lambda: chunked(data, chunk_bytes))


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def document_of(data: bytes, media_type: MediaType = "text/plain", encoding: Encoding | None = None) -> Document:
    sha256 = hashlib.sha256(data).hexdigest()
    return Document(
        document_id=content_id("doc", sha256, "case"),
        sha256=sha256,
        size_bytes=len(data),
        name="case",
        media_type=media_type,
        encoding=encoding or found_encoding(data),
    )


def passages(
    data: bytes, media_type: MediaType = "text/plain", *, chunk_bytes: int = 1 << 16, **rule: object
) -> list[Passage]:
    return list(passages_of(document_of(data, media_type), chunked(data, chunk_bytes), SplitRule(**rule)))  # type: ignore[arg-type]


def kept(store: MemoryStore, data: bytes, name: str = "a.txt", media_type: MediaType = "text/plain") -> Document:
    return keep_document(store, [data], Source(name, media_type)).document


def context_for(store: MemoryStore) -> JobContext:
    return JobContext(store, attempt=1, scratch="scratch/job_x/1-1/", stopping=threading.Event())


def without_space(texts: Iterable[str]) -> str:
    return "".join("".join(text.split()) for text in texts)
