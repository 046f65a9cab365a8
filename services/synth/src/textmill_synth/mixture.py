"""The handler of mix jobs: rows of several datasets become one dataset, in given shares.

Training rows are offered once an epoch, and of each epoch the share ``weight`` is taken, row by row by a hash. So the
same job takes the same rows, and another row in a source changes nothing about the others. ``eval`` is taken whole and
once; ``heldout`` once, as far as its facts are trained on. A document that is evaluated for one source and trained on
in another is a mistake that no choice here could mend: the job fails and names it.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Record, SourceRows, Split
from textmill.contracts.jobs import MixJob, Output
from textmill.contracts.synthesis import MixSource
from textmill.errors import BadRequest, JobFailed
from textmill.worker import JobContext
from textmill_synth.derived import (
    ONLY_EQUAL,
    PROGRESS_ROWS,
    Copies,
    Publisher,
    RowTally,
    TrainedFacts,
    attempt_prefix,
)
from textmill_synth.row_writer import RowWriter
from textmill_synth.stored import SPLITS, StoredDatasets


def validate_mixture(job: MixJob) -> None:
    """Raises ``BadRequest``."""
    named = [source.dataset_id for source in job.sources]
    if twice := {dataset_id for dataset_id in named if named.count(dataset_id) > 1}:
        raise BadRequest(f"named twice: {', '.join(sorted(twice))}; name a dataset once, and give it more epochs")


@dataclass(frozen=True)
class MixHandler:
    """Does one job. Raises ``BadRequest`` or ``NotFound`` for what can't be done, ``JobFailed`` for a leak."""

    def __call__(self, job: MixJob, context: JobContext) -> Output:
        validate_mixture(job)
        datasets = StoredDatasets(context.store)
        parents = [datasets.manifest(source.dataset_id) for source in job.sources]
        prefix, check = attempt_prefix(job.dataset_id, context), context.raise_if_stopped
        with (
            tempfile.TemporaryDirectory(prefix="textmill-mix-") as folder,
            RowWriter(context.store, Path(folder), ONLY_EQUAL, job.seed) as rows,
        ):
            mixing = _Mixing(job, datasets, rows, context)
            sources = mixing.run()
            context.progress("write")
            publisher = Publisher(context.store, job.dataset_id, prefix, parents, check)
            return publisher.publish(rows, mixing.total(), sources=sources)


@dataclass
class _Taken:
    """Of one source."""

    rows: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    taken: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tally: RowTally = field(default_factory=RowTally)


class _Mixing:
    def __init__(self, job: MixJob, datasets: StoredDatasets, rows: RowWriter, context: JobContext) -> None:
        self._job = job
        self._datasets = datasets
        self._rows = rows
        self._context = context
        self._taken = [_Taken() for _ in job.sources]
        self._trained_in: dict[str, set[int]] = {}
        """Documents of ``train``, and by number the sources that train on them."""
        self._facts = TrainedFacts()
        self._read = 0

    def run(self) -> list[SourceRows]:
        """Training rows of all sources first: what they hold decides on the others."""
        for number, source in enumerate(self._job.sources):
            copies = Copies()
            for record in self._stream(source, "train"):
                self._train(number, source, record, copies)
        for number, source in enumerate(self._job.sources):
            for split in ("eval", "heldout"):
                for record in self._stream(source, split):
                    self._evaluate(number, source, record)
        return [
            SourceRows(
                dataset_id=source.dataset_id,
                weight=source.weight,
                epochs=source.epochs,
                rows=taken.rows,
                taken=taken.taken,
                left_out=dict(taken.tally.left_out),
            )
            for source, taken in zip(self._job.sources, self._taken, strict=True)
        ]

    def total(self) -> RowTally:
        total = RowTally()
        for taken in self._taken:
            total.offered += taken.tally.offered
            total.taken += taken.tally.taken
            total.left_out += taken.tally.left_out
        return total

    def _train(self, number: int, source: MixSource, record: Record, copies: Copies) -> None:
        taken = self._taken[number]
        taken.rows["train"] += 1
        for document_id in _documents(record):
            self._trained_in.setdefault(document_id, set()).add(number)
        for epoch in range(source.epochs):
            if not _chosen(record.record_id, self._job.seed, epoch, source.weight):
                taken.tally.leave_out("weight")
                continue
            row = self._rows.add(_copy(record, source.dataset_id, epoch), copy_of=copies.first(record))
            copies.note(record, row)
            taken.taken["train"] += 1
            taken.tally.take()
            self._facts.note(record)

    def _evaluate(self, number: int, source: MixSource, record: Record) -> None:
        taken = self._taken[number]
        taken.rows[record.split] += 1
        if record.split == "heldout" and not self._facts.has(record):
            taken.tally.leave_out("fact_not_trained")
            return
        if record.split == "eval":
            self._refuse_trained(number, record)
        self._rows.add(_copy(record, source.dataset_id, 0))
        taken.taken[record.split] += 1
        taken.tally.take()

    def _refuse_trained(self, number: int, record: Record) -> None:
        for document_id in _documents(record):
            if others := self._trained_in.get(document_id, set()) - {number}:
                trained = ", ".join(self._job.sources[other].dataset_id for other in sorted(others))
                raise JobFailed(
                    f"document {document_id} is in the evaluation split of {self._job.sources[number].dataset_id} and "
                    f"in the training split of {trained}: the mixture would be tested on what it was trained on. Make "
                    "these datasets with the same seed and eval_fraction, or mix others"
                )

    def _stream(self, source: MixSource, split: Split) -> Iterator[Record]:
        for record in self._datasets.stream(source.dataset_id, (split,)):
            if self._read % PROGRESS_ROWS == 0:
                self._context.raise_if_stopped()
                self._context.progress("mix", self._read, unit="records")
            self._read += 1
            yield record


def _copy(record: Record, dataset_id: str, epoch: int) -> Record:
    return record.model_copy(
        update={
            "record_id": content_id("rec", dataset_id, record.record_id, str(epoch)),
            "source_dataset_id": dataset_id,
            "source_record_id": record.record_id,
            "copy_number": epoch,
        }
    )


def _documents(record: Record) -> set[str]:
    return {record.document_id, *(evidence.document_id for evidence in record.more_evidence)}


def _chosen(record_id: str, seed: int, epoch: int, weight: float) -> bool:
    """True for the share ``weight`` of all records, and in each epoch for other ones."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{record_id}".encode()).digest()
    return int.from_bytes(digest[:8]) < weight * 2**64
