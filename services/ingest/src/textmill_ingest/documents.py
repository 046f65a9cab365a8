"""Keeps documents: takes their bytes in a stream, finds out what they are, lists them, deletes them and what they hold.

Knows the object store's port; knows neither HTTP nor jobs.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from textmill.contracts.base import content_id, new_id
from textmill.contracts.documents import Document, Encoding, MediaType
from textmill.errors import BadRequest, Conflict, DependencyDown, NotFound
from textmill.store import ObjectStore
from textmill_ingest.encoding import EncodingProbe, declared_encoding, detect_encoding
from textmill_ingest.originals import adopt, release


@dataclass(frozen=True)
class Source:
    """What the sender says of the bytes. ``encoding`` None means: find out."""

    name: str
    media_type: MediaType
    encoding: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Kept:
    """``created`` is False where the same bytes under the same name were there already."""

    document: Document
    created: bool


def document_key(document_id: str) -> str:
    return f"documents/{document_id}.json"


def keep_document(store: ObjectStore, chunks: Iterable[bytes], source: Source) -> Kept:
    """Store the bytes once and describe them. Constant memory; an error of any kind leaves no document.

    Raises:
        UndecodableText: with the byte offset.
        Conflict: the same bytes and name were kept before as another media type or encoding.
    """
    upload_key = f"uploads/{new_id('upl')}"
    try:
        meter = _Meter(chunks)
        store.put_stream(upload_key, meter)
        if meter.size_bytes == 0:
            raise BadRequest(f"{source.name!r} is empty; send at least one byte")
        return _publish(store, _describe(store, upload_key, meter, source), upload_key)
    finally:
        # With the store down the sweep at the next start does it.
        with contextlib.suppress(DependencyDown):
            store.delete(upload_key)


def _describe(store: ObjectStore, upload_key: str, meter: "_Meter", source: Source) -> Document:
    sha256 = meter.sha256
    return Document(
        document_id=content_id("doc", sha256, source.name),
        sha256=sha256,
        size_bytes=meter.size_bytes,
        name=source.name,
        media_type=source.media_type,
        encoding=_encoding(store, upload_key, meter, source),
        source_url=source.url,
    )


def _encoding(store: ObjectStore, upload_key: str, meter: "_Meter", source: Source) -> Encoding:
    def read() -> Iterator[bytes]:
        return store.stream(upload_key)

    if source.encoding is not None:
        return declared_encoding(source.encoding, read)
    return meter.probe.finish() or detect_encoding(read)


def _publish(store: ObjectStore, document: Document, upload_key: str) -> Kept:
    adopt(store, document.sha256, document.document_id, upload_key)
    if store.create(document_key(document.document_id), document.to_json()):
        return Kept(document, created=True)
    known = get_document(store, document.document_id)
    if (known.media_type, known.encoding.name) != (document.media_type, document.encoding.name):
        raise Conflict(
            f"{known.document_id} has the same bytes and name and is {known.media_type} in {known.encoding.name}, "
            f"not {document.media_type} in {document.encoding.name}; delete it first or send another name"
        )
    return Kept(known, created=False)


class _Meter:
    """Passes chunks on; counts, hashes and reads them on the way."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.probe = EncodingProbe()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._digest.update(chunk)
            self.probe.feed(chunk)
            self.size_bytes += len(chunk)
            yield chunk


def get_document(store: ObjectStore, document_id: str) -> Document:
    """Raises ``NotFound``."""
    try:
        return Document.model_validate_json(store.get(document_key(document_id)))
    except NotFound as exc:
        raise NotFound(f"no document {document_id}") from exc


def list_documents(store: ObjectStore, limit: int, after: str = "") -> list[Document]:
    """In the order of their ids, from the first past ``after``."""
    found = store.list("documents/", after=document_key(after) if after else "")
    return [Document.model_validate_json(store.get(item.key)) for item in islice(found, limit)]


def missing_documents(store: ObjectStore, document_ids: Iterable[str]) -> list[str]:
    return [document_id for document_id in document_ids if not store.exists(document_key(document_id))]


def delete_document(store: ObjectStore, document_id: str) -> bool:
    """Delete the document, and its bytes unless another document has them. True if the bytes are gone.

    Raises:
        NotFound: no such document.
    """
    document = get_document(store, document_id)
    store.delete(document_key(document_id))
    return release(store, document.sha256, document_id)
