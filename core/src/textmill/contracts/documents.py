"""What ingest keeps: documents as they came, and the passages they were split into."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract, StoredContract, utc_now

MediaType = Literal["text/plain", "text/markdown", "text/html", "application/jsonl", "text/csv"]
Language = Literal["en", "zh"]


class Encoding(Contract):
    """How the bytes of a document were read. ``confidence`` is 1.0 where a rule decided, less where detection did."""

    name: str
    method: Literal["bom", "utf-8", "gb18030", "detected", "declared"]
    confidence: float = Field(ge=0, le=1)


class Document(StoredContract):
    """One uploaded or fetched file. The bytes lie at ``raw/<sha256>``, once, however often they were uploaded."""

    document_id: str
    sha256: str
    size_bytes: int
    name: str
    media_type: MediaType
    encoding: Encoding
    source_url: str | None = None
    created_at: datetime = Field(default_factory=utc_now)

    @property
    def raw_key(self) -> str:
        return f"raw/{self.sha256}"


class Span(Contract):
    """A half-open range of the original document, in characters of its decoded text and in bytes of the file."""

    char_start: int
    char_end: int
    byte_start: int
    byte_end: int


class Passage(StoredContract):
    """A piece of a document, small enough to ask about.

    ``text`` is what readers see; ``span`` is where it stands in the original. ``exact`` says that the original's
    characters in ``span`` are ``text`` to the letter; where markup was taken out (HTML, JSON escapes) they are not.
    """

    passage_id: str
    document_id: str
    document_sha256: str
    index: int
    text: str
    language: Language
    heading: str | None = None
    span: Span
    exact: bool


class CorpusManifest(StoredContract):
    """A corpus: the passages of some documents, in JSON lines at ``passages_key``. Written last."""

    corpus_id: str
    document_ids: Sequence[str]
    passages_key: str
    passages: int
    passages_by_document: dict[str, int] = Field(default_factory=dict)
    characters: int
    languages: dict[Language, int]
    created_at: datetime = Field(default_factory=utc_now)


class CrawlOutcome(Contract):
    """What became of one URL: a document, or the reason why there is none. ``status`` is the last HTTP status seen."""

    url: str
    final_url: str | None = None
    status: int | None = None
    document_id: str | None = None
    reason: str | None = None
    detail: str | None = None

    @model_validator(mode="after")
    def _settled(self) -> "CrawlOutcome":
        if (self.document_id is None) == (self.reason is None):
            raise ValueError("a URL gave either a document or a reason why not")
        return self


class CrawlManifest(StoredContract):
    """A crawl: one outcome for each URL asked for, in the order they were given. Written last."""

    crawl_id: str
    outcomes: Sequence[CrawlOutcome]
    created_at: datetime = Field(default_factory=utc_now)

    @property
    def document_ids(self) -> list[str]:
        """Without repeats."""
        return list(dict.fromkeys(o.document_id for o in self.outcomes if o.document_id is not None))
