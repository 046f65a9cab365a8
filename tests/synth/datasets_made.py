"""Puts datasets into a store as synth leaves them, without an LLM: for readers of datasets."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpora import put_corpus

from textmill.contracts.base import content_id, new_id
from textmill.contracts.datasets import Counts, DatasetManifest, Message, Record, Reject, Split
from textmill.contracts.documents import Passage
from textmill.contracts.synthesis import QualityOptions
from textmill.store import ObjectStore
from textmill_synth.corpus import Corpus, Documents
from textmill_synth.row_writer import RowWriter

TRIGRAMS = ("Fire", "Lake", "Wind", "Water", "Earth", "Thunder", "Mountain", "Heaven")


def put_texts(store: ObjectStore, documents: int = 4, corpus: int = 0) -> str:
    """A corpus of English documents with one passage each. Returns its id."""
    texts = {f"{n:02}.md": _text(n + 100 * corpus) for n in range(documents)}
    return put_corpus(store, texts)


def records_of(
    store: ObjectStore, corpus_id: str, evaluated: Sequence[int] = (), ways: int = 2, held_out: int = 1
) -> list[Record]:
    """For each passage ``ways`` questions to train on and ``held_out`` more, or only such for evaluation."""
    documents, found = Documents(store), list[Record]()
    for number, passage in enumerate(Corpus(store, corpus_id).passages()):
        if number in evaluated:
            found += [_record(documents, passage, way, "eval") for way in range(ways)]
        else:
            found += [_record(documents, passage, way, "train") for way in range(ways)]
            found += [_record(documents, passage, ways + way, "heldout") for way in range(held_out)]
    return found


def put_dataset(
    store: ObjectStore, corpus_id: str, records: Sequence[Record], rejects: Sequence[Reject] = (), **fields: Any
) -> DatasetManifest:
    """Write records and rejects, and the manifest last."""
    dataset_id = new_id("ds")
    prefix = f"datasets/{dataset_id}/attempt-1-1/"
    quality = QualityOptions(near_duplicate=1.0, contamination=1.0)
    with tempfile.TemporaryDirectory() as folder, RowWriter(store, Path(folder), quality, 0) as rows:
        for record in records:
            rows.add(record)
        written = rows.publish(prefix, lambda: None)
    store.put(f"{prefix}rejects.jsonl", b"".join(reject.to_json() + b"\n" for reject in rejects))
    reasons = Counter(reject.reason for reject in rejects)
    manifest = DatasetManifest(
        dataset_id=dataset_id, corpus_id=corpus_id, records=written.records,
        counts=Counts(
            requested=len(records) + len(rejects), accepted=len(records), rejected=len(rejects),
            rejected_by_reason=dict(reasons),
        ),
        counts_by_strategy={}, cost={"prompt_tokens": 10, "completion_tokens": 1}, calls=len(records), calls_reused=0,
        records_keys=written.records_keys, rejects_key=f"{prefix}rejects.jsonl", card_key=f"{prefix}README.md",
        exports=written.exports, export_notes=written.export_notes, document_ids=written.document_ids,
        prompt_versions=[], models=[], rows_made=written.rows_made, dropped_by_rule=written.dropped_by_rule,
        drops_key=written.drops_key, quality_key=written.quality_key, **fields,
    )  # fmt: skip
    store.put(f"datasets/{dataset_id}/manifest.json", manifest.to_json())
    return manifest


def a_reject(store: ObjectStore, corpus_id: str, passage: int = 0, reason: str = "truncated") -> Reject:
    found = list(Corpus(store, corpus_id).passages())[passage]
    return Reject(
        passage_id=found.passage_id, question_id="meaning", strategy="qa", reason=reason, detail="no sentence end",
        raw_response="It stands for", prompt_version="qa.en-1", model="m", call_id="call_1",
    )  # fmt: skip


def _text(number: int) -> str:
    below, above = TRIGRAMS[number % 8], TRIGRAMS[(number // 8 + 3) % 8]
    return (
        f"Hexagram {number + 1} has {below} below and {above} above. It was drawn in the year {1100 + number}.\n"
        f"It stands for a leader who waits near the {below.lower()}."
    )


def _record(documents: Documents, passage: Passage, way: int, split: Split) -> Record:
    answer = passage.text.split(".")[0] + "."
    name = " ".join(answer.split()[:2])
    openings = (
        "What is below and above in",
        "Which trigrams make up",
        "Name the two trigrams of",
        "Describe the form of",
    )
    question = f"{openings[way % 4]} {name}{'' if way < 4 else f', in way {way}'}?"
    return Record(
        record_id=content_id("rec", passage.passage_id, question),
        split=split,
        strategy="qa" if way % 2 == 0 else "summary",
        language=passage.language,
        messages=(Message(role="user", content=question), Message(role="assistant", content=answer)),
        key_facts=[answer.split(" has ")[1].split()[0]],
        question_id="trigrams",
        way=f"ask-{way}",
        axis="plain" if way == 0 else "register",
        document_id=passage.document_id,
        document_sha256=passage.document_sha256,
        passage_id=passage.passage_id,
        evidence=answer,
        evidence_span=documents.locate(passage, 0, len(answer)),
        prompt_version="qa.en-1",
        model="m",
        call_id=f"call_{passage.index}",
    )
