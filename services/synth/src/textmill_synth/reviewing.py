"""What a reviewer can do with a dataset: look at its records as the review leaves them, and decide about them.

A list reads at most ``SCAN_ROWS`` rows: with a filter that matches little, a page may be short, or empty, and still
have a next one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from textmill.contracts.datasets import Record
from textmill.contracts.review import (
    MAX_TARGETS,
    Approve,
    Changes,
    Decision,
    Edit,
    NewDecision,
    RecordFilter,
    RecordHistory,
    RecordVersion,
    ReviewedRecord,
    ReviewedReject,
    ReviewSummary,
    Status,
    Undo,
)
from textmill.contracts.review import RejectRecords as Reject
from textmill.errors import BadRequest, EditFailsChecks, NotFound
from textmill_synth.checks import Finding
from textmill_synth.corpus import Corpus
from textmill_synth.editing import edited, finding_of_answer, finding_of_edit
from textmill_synth.review import (
    REJECT_PREFIX,
    ReviewLog,
    ReviewState,
    draft,
    draft_edit,
    draft_undo,
    refuse_unedited,
    reject_id,
    reject_row,
)
from textmill_synth.rowgroups import RowGroup
from textmill_synth.stored import SPLITS, StoredDatasets

SCAN_ROWS = 20_000
_COLUMNS = ("strategy", "axis", "document_id")


@dataclass(frozen=True)
class Reviews:
    datasets: StoredDatasets
    log: ReviewLog

    def records(
        self, dataset_id: str, where: RecordFilter, after: int, limit: int
    ) -> tuple[list[ReviewedRecord], int | None]:
        """A page of the records that match, in training order, and the row at which the next page starts."""
        state, found, scanned = self.log.state(dataset_id), list[ReviewedRecord](), 0
        for group in self._groups(dataset_id, where):
            if group.end <= after:
                continue
            for row, record in _matching(group, state, where, after):
                if len(found) == limit:
                    return found, row
                found.append(record)
            scanned += group.size
            if scanned >= SCAN_ROWS:
                return found, group.end
        return found, None

    def rejects(
        self, dataset_id: str, where: RecordFilter, after: int, limit: int
    ) -> tuple[list[ReviewedReject], int | None]:
        """A page of what synth rejected. ``where`` may say strategy, reason (of synth), status and a piece of text."""
        state, found = self.log.state(dataset_id), list[ReviewedReject]()
        for row, reject in self.datasets.reject_rows(dataset_id, after):
            standing = state.standing(reject_id(row))
            text = f"{reject.raw_response}\n{reject.detail}"
            if (
                where.strategy in (None, reject.strategy)
                and where.reason in (None, reject.reason)
                and where.status in (None, standing.status)
                and (where.contains or "").casefold() in text.casefold()
            ):
                if len(found) == limit:
                    return found, row
                found.append(
                    ReviewedReject(
                        reject_id=reject_id(row),
                        reject=reject,
                        status=standing.status,
                        version=standing.version,
                        changes=standing.changes,
                        last_decision=state.view(standing.last) if standing.last else None,
                    )
                )
        return found, None

    def history(self, dataset_id: str, record_id: str) -> RecordHistory:
        """Raises ``NotFound``."""
        record, state = self.datasets.record(dataset_id, record_id), self.log.state(dataset_id)
        standing = state.standing(record_id)
        versions = [RecordVersion(version=0, author=None, made_at=None, finding=None, record=record)]
        for edit in standing.edits:
            record = edited(record, edit.changes, edit.author)
            versions.append(
                RecordVersion(
                    version=edit.number,
                    author=edit.author,
                    made_at=edit.made_at,
                    finding=edit.finding,
                    record=record,
                )
            )
        decisions = [state.view(decision) for decision in state.history(record_id)]
        return RecordHistory(status=standing.status, version=standing.version, versions=versions, decisions=decisions)

    def summary(self, dataset_id: str) -> ReviewSummary:
        """Reads the ids of all records."""
        counts = {split: dict[Status, int]() for split in SPLITS}
        self.datasets.manifest(dataset_id)
        state = self.log.state(dataset_id)
        for split in SPLITS:
            for group in self.datasets.groups(dataset_id, (split,)):
                for record_id in group.column("record_id"):
                    status = state.standing(record_id).status
                    counts[split][status] = counts[split].get(status, 0) + 1
        promoted = [i for i in state.edited_rejects() if state.standing(i).status != "rejected"]
        return ReviewSummary(
            dataset_id=dataset_id,
            decisions=state.number,
            reviewers=state.reviewers(),
            records=counts,
            promoted=len(promoted),
            overrides=sum(d.finding is not None for n, d in state.decisions.items() if n not in state.undone),
        )

    def decide(self, dataset_id: str, author: str, new: NewDecision) -> Decision:
        """Write a decision down.

        Raises:
            NotFound: the dataset, a record or a decision.
            Conflict: an edit based on another version; an undo of what is undone or edited on.
            EditFailsChecks: and no override.
            BadRequest: a filter that matches nothing, or more than one decision may be about.
        """
        self.datasets.manifest(dataset_id)
        if isinstance(new, Undo):
            return self.log.append(dataset_id, draft_undo(dataset_id, author, new))
        if isinstance(new, Edit):
            finding = self._finding(dataset_id, new)
            return self.log.append(dataset_id, draft_edit(dataset_id, author, new, finding))
        return self._decide_many(dataset_id, author, new)

    def _decide_many(self, dataset_id: str, author: str, new: Approve | Reject) -> Decision:
        ids = self._chosen(dataset_id, new.filter) if new.filter else self._known(dataset_id, new.record_ids)
        decision = draft(dataset_id, author, new, ids)

        def on(state: ReviewState) -> Decision:
            if isinstance(new, Approve):
                refuse_unedited(state, ids)
            if new.filter is None or new.filter.status is None:
                return decision
            still = [i for i in ids if state.standing(i).status == new.filter.status]
            return decision.model_copy(update={"record_ids": still})

        return self.log.append(dataset_id, on)

    def _chosen(self, dataset_id: str, where: RecordFilter) -> list[str]:
        state, ids = self.log.state(dataset_id), list[str]()
        for group in self._groups(dataset_id, where):
            ids += (record.record.record_id for _, record in _matching(group, state, where))
            if len(ids) > MAX_TARGETS:
                raise BadRequest(
                    f"the filter matches more than the {MAX_TARGETS} records that one decision may be about: decide in "
                    "parts, e.g. by document_id or strategy, with status 'pending' to go on from the last part"
                )
        if not ids:
            raise BadRequest(
                "no record matches the filter; GET .../review/records with the same filter shows what does"
            )
        return ids

    def _known(self, dataset_id: str, record_ids: Sequence[str]) -> list[str]:
        """The ids, each once. Raises ``NotFound`` when one isn't of this dataset."""
        wanted = dict.fromkeys(record_ids)
        unknown = {i for i in wanted if not i.startswith(REJECT_PREFIX)}
        for group in self.datasets.groups(dataset_id) if unknown else ():
            unknown.difference_update(group.column("record_id"))
        rows = sorted(reject_row(i) for i in wanted if i.startswith(REJECT_PREFIX))
        if rows:
            lines = sum(1 for _ in self.datasets.reject_rows(dataset_id))
            unknown |= {reject_id(row) for row in rows if row >= lines}
        if unknown:
            raise NotFound(f"dataset {dataset_id} has no record {', '.join(sorted(unknown)[:5])}")
        return list(wanted)

    def _finding(self, dataset_id: str, new: Edit) -> str | None:
        """What the checks say of the edit, for the record. Raises ``EditFailsChecks`` unless it is overridden."""
        before = self.log.state(dataset_id).standing(new.record_id).changes
        changes = _merged(before, new.changes)
        finding = self._check(dataset_id, new.record_id, changes)
        if finding is not None and not new.override:
            raise EditFailsChecks(
                f'{finding.reason}: {finding.detail}. Mend the edit, or send it again with "override": true; that the '
                "checks spoke against it is then recorded"
            )
        return f"{finding.reason}: {finding.detail}" if finding else None

    def _check(self, dataset_id: str, target_id: str, changes: Changes) -> Finding | None:
        if not target_id.startswith(REJECT_PREFIX):
            record = self.datasets.record(dataset_id, target_id)
            if changes.question is None and changes.answer is None:
                return None
            return finding_of_edit(record, changes, self.datasets.passages(dataset_id, record))
        row = reject_row(target_id)
        reject = next(iter(self.datasets.rejects(dataset_id, row, 1)), None)
        if reject is None:
            raise NotFound(f"dataset {dataset_id} has no reject {target_id!r}")
        if changes.question is None or changes.answer is None:
            raise BadRequest("what synth rejected is no record yet: give its question and its answer")
        passage = Corpus(self.datasets.store, self.datasets.manifest(dataset_id).corpus_id).passage(reject.passage_id)
        return finding_of_answer(changes.answer, changes.question, [passage])

    def _groups(self, dataset_id: str, where: RecordFilter) -> Iterator[RowGroup]:
        return self.datasets.groups(dataset_id, (where.split,) if where.split else SPLITS)


def as_reviewed(state: ReviewState, record: Record) -> ReviewedRecord:
    standing = state.standing(record.record_id)
    author = standing.edits[-1].author if standing.edits else ""
    return ReviewedRecord(
        record=edited(record, standing.changes, author),
        status=standing.status,
        version=standing.version,
        last_decision=state.view(standing.last) if standing.last else None,
    )


def _matching(
    group: RowGroup, state: ReviewState, where: RecordFilter, after: int = 0
) -> Iterator[tuple[int, ReviewedRecord]]:
    """Rows that match, with their numbers. Reads whole rows only where the cheap columns match."""
    places = list(range(max(0, after - group.start), group.size))
    for name in _COLUMNS:
        wanted = getattr(where, name)
        if wanted is not None:
            values = group.column(name)
            places = [place for place in places if values[place] == wanted]
    if where.status is not None or where.reason is not None:
        ids = group.column("record_id")
        places = [place for place in places if _status_matches(state, ids[place], where)]
    piece = (where.contains or "").casefold()
    for place, record in zip(places, group.records(places) if places else (), strict=True):
        reviewed = as_reviewed(state, record)
        if piece in f"{reviewed.record.question}\n{reviewed.record.answer}".casefold():
            yield group.start + place, reviewed


def _status_matches(state: ReviewState, record_id: str, where: RecordFilter) -> bool:
    standing = state.standing(record_id)
    if where.status not in (None, standing.status):
        return False
    reason = standing.last.reason if standing.last else None
    return where.reason is None or where.reason.casefold() in (reason or "").casefold()


def _merged(before: Changes | None, now: Changes) -> Changes:
    known = before.model_dump(exclude_none=True) if before else {}
    return Changes.model_validate(known | now.model_dump(exclude_none=True))
