"""Builds corpora in a store as ingest leaves them, from the texts of the zhouyi example or given ones."""

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from textmill.contracts.base import content_id, new_id
from textmill.contracts.documents import CorpusManifest, Document, Encoding, Language, Passage, Span
from textmill.contracts.jobs import SynthJob
from textmill.contracts.synthesis import QuestionSet
from textmill.store import MemoryStore, ObjectStore
from textmill.worker import JobContext
from textmill_synth.settings import SynthSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "zhouyi"


def zhouyi_texts(language: Language, count: int) -> dict[str, str]:
    return {f.name: f.read_text(encoding="utf-8") for f in sorted((EXAMPLES / language).glob("*.md"))[:count]}


def zhouyi_questions(language: Language) -> QuestionSet:
    text = (EXAMPLES / f"questions.{language}.yaml").read_text(encoding="utf-8")
    return QuestionSet.model_validate(yaml.safe_load(text))


def put_corpus(
    store: ObjectStore,
    texts: Mapping[str, str],
    language: Language = "en",
    encoding: str = "utf-8",
    heading: bool = False,
) -> str:
    """One document a text, one passage a blank-line paragraph. Returns the corpus id."""
    corpus_id = new_id("cor")
    passages = [
        p for name, text in texts.items() for p in _put_document(store, name, text, language, encoding, heading)
    ]
    key = f"corpora/{corpus_id}/passages.jsonl"
    store.put(key, b"".join(p.to_json() + b"\n" for p in passages))
    manifest = CorpusManifest(
        corpus_id=corpus_id,
        document_ids=list(dict.fromkeys(p.document_id for p in passages)),
        passages_key=key,
        passages=len(passages),
        characters=sum(len(p.text) for p in passages),
        languages={language: len(passages)},
    )
    store.put(f"corpora/{corpus_id}/manifest.json", manifest.to_json())
    return corpus_id


def _put_document(
    store: ObjectStore, name: str, text: str, language: Language, encoding: str, heading: bool
) -> list[Passage]:
    data = text.encode(encoding)
    sha256 = hashlib.sha256(data).hexdigest()
    document = Document(
        document_id=content_id("doc", sha256),
        sha256=sha256,
        size_bytes=len(data),
        name=name,
        media_type="text/markdown",
        encoding=Encoding(name=encoding, method="declared", confidence=1.0),
    )
    store.put(document.raw_key, data)
    store.put(f"documents/{document.document_id}.json", document.to_json())
    passages = []
    for index, piece in enumerate(text.strip().split("\n\n")):
        start = text.index(piece)
        byte_start = len(text[:start].encode(encoding))
        byte_end = byte_start + len(piece.encode(encoding))
        span = Span(char_start=start, char_end=start + len(piece), byte_start=byte_start, byte_end=byte_end)
        passages.append(
            Passage(
                passage_id=content_id("pas", sha256, str(index)),
                document_id=document.document_id,
                document_sha256=sha256,
                index=index,
                text=piece,
                language=language,
                heading=name if heading else None,
                span=span,
                exact=True,
            )
        )
    return passages


def context(store: ObjectStore, attempt: int = 1) -> JobContext:
    return JobContext(store, attempt, f"scratch/job_x/1-{attempt}/", threading.Event())


def settings(url: str, **changes: Any) -> SynthSettings:
    """Short waits, so that a test of retries takes milliseconds."""
    values = {"response_mode": "text", "deadline_s": 60.0, "concurrency": 8, "retry_delay_s": 0.001, **changes}
    return SynthSettings(llm_url=url, **values)


def zhouyi_job(store: MemoryStore, count: int = 3, language: Language = "en", **changes: Any) -> SynthJob:
    """Three questions on each of the first hexagrams."""
    corpus_id = put_corpus(store, zhouyi_texts(language, count), language)
    settled = {"context": "sentence", **changes}
    return SynthJob(corpus_id=corpus_id, question_sets=(zhouyi_questions(language),), **settled)
