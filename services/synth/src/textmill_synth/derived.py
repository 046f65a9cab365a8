"""What mixtures and frozen sets share: rows of other datasets become a dataset, and every row is accounted for."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from textmill.contracts.datasets import Cost, Counts, DatasetManifest, Record
from textmill.contracts.jobs import Output
from textmill.contracts.synthesis import QualityOptions
from textmill.errors import JobFailed
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_synth.card import put_card
from textmill_synth.croissant import with_croissant
from textmill_synth.row_writer import RowWriter

ONLY_EQUAL = QualityOptions(near_duplicate=1.0, contamination=1.0)
"""The rows were looked at when they were made; what comes together may still be equal, or give each other away."""
PROGRESS_ROWS = 1_000


@dataclass
class RowTally:
    """Rows offered are taken, or left out for a reason."""

    offered: int = 0
    taken: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, rows: int = 1) -> None:
        self.offered += rows
        self.left_out[reason] += rows

    def take(self) -> None:
        self.offered += 1
        self.taken += 1

    def counts(self) -> Counts:
        return Counts(
            requested=self.offered,
            accepted=self.taken,
            rejected=self.left_out.total(),
            rejected_by_reason=dict(sorted(self.left_out.items())),
        )


class TrainedFacts:
    """Which facts ``train`` has. ``heldout`` asks for no others. About 100 bytes a fact."""

    def __init__(self) -> None:
        self._facts: set[int] = set()

    def note(self, record: Record) -> None:
        self._facts.add(_fact(record))

    def has(self, record: Record) -> bool:
        return _fact(record) in self._facts


class Copies:
    """Which rows of a dataset are copies of each other, made by a mixture: what was screened holds no others.

    About 100 bytes a row.
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}

    def first(self, record: Record) -> int | None:
        """The row of the writer that has the same words."""
        return self._rows.get(_words(record))

    def note(self, record: Record, row: int) -> None:
        self._rows.setdefault(_words(record), row)


@dataclass(frozen=True)
class Publisher:
    """Writes down a dataset made of ``parents``' rows."""

    store: ObjectStore
    dataset_id: str
    prefix: str
    parents: Sequence[DatasetManifest]
    check: Callable[[], None]

    def publish(self, rows: RowWriter, tally: RowTally, **origin: Any) -> Output:
        """Upload all; ``origin`` are further fields of the manifest, which is returned to be written last.

        Raises:
            JobFailed: no row is left.
        """
        if tally.taken == 0:
            left_out = dict(sorted(tally.left_out.items()))
            raise JobFailed(f"no row is left for {self.dataset_id}: of {tally.offered}, left out {left_out}")
        written = rows.publish(self.prefix, self.check)
        rejects_key = f"{self.prefix}rejects.jsonl"
        self.store.put(rejects_key, b"")
        corpora = dict.fromkeys(c for m in self.parents for c in (m.corpus_id, *m.more_corpus_ids))
        first, *others = corpora
        manifest = DatasetManifest(
            dataset_id=self.dataset_id,
            corpus_id=first,
            more_corpus_ids=others,
            records=written.records,
            counts=tally.counts(),
            counts_by_strategy={},
            cost=_cost(self.parents),
            calls=0,
            calls_reused=sum(parent.calls + parent.calls_reused for parent in self.parents),
            records_keys=written.records_keys,
            rejects_key=rejects_key,
            card_key=f"{self.prefix}README.md",
            exports=written.exports,
            export_notes=written.export_notes,
            document_ids=written.document_ids,
            prompt_versions=written.prompt_versions,
            models=written.models,
            rows_made=written.rows_made,
            dropped_by_rule=written.dropped_by_rule,
            drops_key=written.drops_key,
            quality_key=written.quality_key,
            **origin,
        )
        manifest = with_croissant(self.store, manifest, self.prefix, self.check)
        put_card(self.store, manifest, written.quality, written.examples)
        key = f"datasets/{self.dataset_id}/manifest.json"
        return Output(manifest_key=key, manifest=manifest.model_dump(mode="json"))


def attempt_prefix(dataset_id: str, context: JobContext) -> str:
    """Where this attempt may write: no other attempt, nor one of a later life, writes there."""
    attempt = context.scratch.rstrip("/").rsplit("/", 1)[-1]
    return f"datasets/{dataset_id}/attempt-{attempt}/"


def _fact(record: Record) -> int:
    return _hash64(record.document_sha256, record.passage_id, record.question_id)


def _words(record: Record) -> int:
    return _hash64(record.passage_id, *(message.model_dump_json() for message in record.messages))


def _hash64(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest())


def _cost(parents: Sequence[DatasetManifest]) -> Cost:
    return Cost(
        prompt_tokens=sum(parent.cost.prompt_tokens for parent in parents),
        completion_tokens=sum(parent.cost.completion_tokens for parent in parents),
    )
