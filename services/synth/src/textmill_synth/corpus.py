"""Reads what ingest wrote (corpora, passages, documents) and finds where a piece of a passage stands originally."""

import codecs
from collections.abc import Iterator
from functools import lru_cache

from textmill.contracts.documents import CorpusManifest, Document, Passage, Span
from textmill.errors import NotFound
from textmill.store import ObjectStore

# Python's names for these write or expect a byte order mark, which stands at the start of a file only.
_WITHOUT_MARK = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}


class Corpus:
    """A corpus in the store. Raises ``NotFound`` when there is none by this id."""

    def __init__(self, store: ObjectStore, corpus_id: str) -> None:
        self._store = store
        try:
            data = store.get(f"corpora/{corpus_id}/manifest.json")
        except NotFound as exc:
            raise NotFound(
                f"no corpus {corpus_id!r}: its corpus job must have succeeded before it can be used"
            ) from exc
        self.manifest = CorpusManifest.model_validate_json(data)

    def passages(self) -> Iterator[Passage]:
        """In the order of the corpus, streamed."""
        return (Passage.model_validate_json(line) for line in stored_lines(self._store, self.manifest.passages_key))

    def passage(self, passage_id: str) -> Passage:
        """Reads the corpus up to the passage. Raises ``NotFound``."""
        for passage in self.passages():
            if passage.passage_id == passage_id:
                return passage
        raise NotFound(f"corpus {self.manifest.corpus_id} has no passage {passage_id!r}")


class Documents:
    """The documents' own descriptions, each read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.get = lru_cache(maxsize=1024)(self._get)

    def _get(self, document_id: str) -> Document:
        return Document.model_validate_json(self._store.get(f"documents/{document_id}.json"))

    def locate(self, passage: Passage, start: int, end: int) -> Span:
        """Where ``passage.text[start:end]`` stands in the original document, in characters and in bytes.

        For a passage that isn't its original to the letter (markup was taken out), and for encodings whose bytes
        depend on what came before, the answer is the span of the whole passage.
        """
        encoding = codecs.lookup(self.get(passage.document_id).encoding.name).name
        encoding = _WITHOUT_MARK.get(encoding, encoding)
        whole, text = passage.span, passage.text
        if not passage.exact or len(text.encode(encoding)) != whole.byte_end - whole.byte_start:
            return whole
        byte_start = whole.byte_start + len(text[:start].encode(encoding))
        return Span(
            char_start=whole.char_start + start,
            char_end=whole.char_start + end,
            byte_start=byte_start,
            byte_end=byte_start + len(text[start:end].encode(encoding)),
        )

    def original(self, document_id: str, span: Span) -> str:
        """The characters of the span, read from the document's own bytes."""
        document = self.get(document_id)
        data = self._store.get_range(document.raw_key, span.byte_start, span.byte_end)
        name = codecs.lookup(document.encoding.name).name
        if name == "utf-16" and self._store.get_range(document.raw_key, 0, 2) == codecs.BOM_UTF16_BE:
            name = "utf-16-be"
        return data.decode(_WITHOUT_MARK.get(name, name), errors="replace")


def stored_lines(store: ObjectStore, key: str) -> Iterator[bytes]:
    """The non-empty lines of an object, in memory one chunk at a time."""
    rest = b""
    for chunk in store.stream(key):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest
