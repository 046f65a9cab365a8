"""The handler of freeze jobs: what a review left of a dataset becomes a dataset of its own, which no review changes.

Rejected records are left out, edits applied, and what synth had rejected comes in where a reviewer gave it an answer.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from textmill.contracts.base import content_id
from textmill.contracts.datasets import DatasetManifest, Message, Record, Reject, Reviewed, Split
from textmill.contracts.documents import Passage
from textmill.contracts.jobs import FreezeJob, Output
from textmill.contracts.review import Changes
from textmill.errors import NotFound
from textmill.worker import JobContext
from textmill_synth.corpus import Corpus, Documents
from textmill_synth.derived import (
    ONLY_EQUAL,
    PROGRESS_ROWS,
    Copies,
    Publisher,
    RowTally,
    TrainedFacts,
    attempt_prefix,
)
from textmill_synth.editing import edited
from textmill_synth.grounding import closest_sentence
from textmill_synth.review import ReviewLog, ReviewState, Standing, reject_id, reject_row
from textmill_synth.row_writer import RowWriter
from textmill_synth.stored import StoredDatasets


@dataclass(frozen=True)
class FreezeHandler:
    """Does one job. Raises ``NotFound``, and ``JobFailed`` when the review left no record."""

    def __call__(self, job: FreezeJob, context: JobContext) -> Output:
        datasets = StoredDatasets(context.store)
        parent, state = datasets.manifest(job.reviewed_id), ReviewLog(context.store).state(job.reviewed_id)
        prefix, check = attempt_prefix(job.dataset_id, context), context.raise_if_stopped
        with (
            tempfile.TemporaryDirectory(prefix="textmill-freeze-") as folder,
            RowWriter(context.store, Path(folder), ONLY_EQUAL, 0) as rows,
        ):
            freezing = _Freezing(parent, state, job.only_approved, datasets, rows, context)
            freezing.run()
            context.progress("write")
            return Publisher(context.store, job.dataset_id, prefix, [parent], check).publish(
                rows,
                freezing.tally,
                parent_dataset_id=parent.dataset_id,
                reviewers=list(state.reviewers()),
                reviewed=Reviewed(
                    decisions=state.number,
                    edited=freezing.edited,
                    promoted=freezing.promoted,
                    overrides=freezing.overrides,
                ),
            )


@dataclass(frozen=True)
class _Row:
    """A record after its review; ``before`` is the parent's, None for what synth had rejected."""

    record: Record
    standing: Standing
    before: Record | None = None


@dataclass
class _Freezing:
    parent: DatasetManifest
    state: ReviewState
    only_approved: bool
    datasets: StoredDatasets
    rows: RowWriter
    context: JobContext
    tally: RowTally = field(default_factory=RowTally)
    edited: int = 0
    promoted: int = 0
    overrides: int = 0
    _facts: TrainedFacts = field(default_factory=TrainedFacts)
    _copies: Copies = field(default_factory=Copies)

    def run(self) -> None:
        """What is trained on first: ``heldout`` asks for nothing else."""
        self._keep(self._records("train"))
        self._keep(self._taken_up())
        self._keep(self._records("eval"))
        self._keep(self._records("heldout"))

    def _keep(self, rows: Iterator[_Row]) -> None:
        for number, row in enumerate(rows):
            if number % PROGRESS_ROWS == 0:
                self.context.raise_if_stopped()
                self.context.progress("freeze", self.tally.offered, sum(self.parent.records.values()), "records")
            if reason := self._reason_against(row.record, row.standing):
                self.tally.leave_out(reason)
            else:
                self._take(row)

    def _take(self, row: _Row) -> None:
        """Copies in a mixture stay copies, also when one of them was edited."""
        first = self._copies.first(row.before) if row.before and row.record.split == "train" else None
        number = self.rows.add(row.record, copy_of=first)
        if row.before and row.record.split == "train":
            self._copies.note(row.before, number)
        if row.record.split == "train":
            self._facts.note(row.record)
        self.tally.take()
        self.promoted += row.before is None
        self.edited += bool(row.standing.edits) and row.before is not None
        self.overrides += any(edit.finding for edit in row.standing.edits)

    def _reason_against(self, record: Record, standing: Standing) -> str | None:
        if standing.status == "rejected":
            return "review_rejected"
        if self.only_approved and standing.status != "approved":
            return "not_approved"
        if record.split == "heldout" and not self._facts.has(record):
            return "fact_not_trained"
        return None

    def _records(self, split: Split) -> Iterator[_Row]:
        for record in self.datasets.stream(self.parent.dataset_id, (split,)):
            standing = self.state.standing(record.record_id)
            source = {"source_dataset_id": self.parent.dataset_id, "source_record_id": record.record_id}
            if standing.changes is None:
                yield _Row(record.model_copy(update=source), standing, record)
                continue
            new = edited(record, standing.changes, standing.edits[-1].author)
            new_id = _new_id(self.parent.dataset_id, new)
            yield _Row(new.model_copy(update={**source, "record_id": new_id}), standing, record)

    def _taken_up(self) -> Iterator[_Row]:
        """What synth rejected and a reviewer gave an answer to, on the side that its document is on."""
        wanted = {reject_row(found) for found in self.state.edited_rejects()}
        if not wanted:
            return
        rejects = {n: r for n, r in self.datasets.reject_rows(self.parent.dataset_id) if n in wanted}
        passages = self._passages({reject.passage_id for reject in rejects.values()})
        evaluated = self._evaluated_documents()
        for row in sorted(wanted):
            reject, standing = rejects[row], self.state.standing(reject_id(row))
            passage = passages[reject.passage_id]
            split: Split = "eval" if passage.document_id in evaluated else "train"
            assert standing.changes is not None
            author = standing.edits[-1].author
            record = _record(self.datasets, self.parent.dataset_id, row, reject, passage, standing.changes, author)
            yield _Row(record.model_copy(update={"split": split}), standing)

    def _passages(self, wanted: set[str]) -> dict[str, Passage]:
        corpus = Corpus(self.datasets.store, self.parent.corpus_id)
        found = {p.passage_id: p for p in corpus.passages() if p.passage_id in wanted}
        if missing := wanted - found.keys():
            raise NotFound(f"corpus {self.parent.corpus_id} has no passage {', '.join(sorted(missing))}")
        return found

    def _evaluated_documents(self) -> set[str]:
        groups = self.datasets.groups(self.parent.dataset_id, ("eval",))
        return {document_id for group in groups for document_id in group.column("document_id")}


def _record(
    datasets: StoredDatasets,
    parent_id: str,
    row: int,
    reject: Reject,
    passage: Passage,
    changes: Changes,
    author: str,
) -> Record:
    """A record with the reviewer's texts, and as evidence the sentence that they are closest to."""
    assert changes.question is not None
    assert changes.answer is not None
    start, end = closest_sentence(changes.answer, passage.text)
    system = [Message(role="system", content=changes.system)] if changes.system else []
    record = Record(
        record_id="",
        split="train",
        strategy=reject.strategy,
        language=passage.language,
        messages=[
            *system,
            Message(role="user", content=changes.question),
            Message(role="assistant", content=changes.answer),
        ],
        key_facts=[],
        question_id=reject.question_id,
        way="reviewer",
        document_id=passage.document_id,
        document_sha256=passage.document_sha256,
        passage_id=passage.passage_id,
        evidence=passage.text[start:end],
        evidence_span=Documents(datasets.store).locate(passage, start, end),
        rung=reject.rung,
        prompt_version=reject.prompt_version,
        model=reject.model,
        call_id=reject.call_id,
        source_dataset_id=parent_id,
        source_record_id=reject_id(row),
        edited_by=author,
    )
    return record.model_copy(update={"record_id": _new_id(parent_id, record)})


def _new_id(parent_id: str, record: Record) -> str:
    """An edited record is another one: its id depends on what it was and what it says now."""
    before = record.record_id or record.source_record_id or ""
    return content_id("rec", parent_id, before, *(message.content for message in record.messages))
