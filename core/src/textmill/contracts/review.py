"""What people decide about the records of a dataset: the decisions, which are stored, and what they add up to.

A decision is never changed. Number n of a dataset lies at ``reviews/<dataset_id>/<n>.json``, written create-only, so
that all reviewers' decisions stand in one order and none is lost.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.datasets import Axis, Record, Reject, Split, Strategy

Status = Literal["pending", "edited", "approved", "rejected"]
"""``pending``: nobody has decided. ``edited``: changed since it was last approved or rejected."""
Action = Literal["approve", "reject", "edit", "undo"]
RecordId = Annotated[str, Field(pattern=r"^re[cj]_[0-9a-f]{32}$")]
"""``rec_...`` is a record of the dataset, ``rej_...`` one that synth rejected: the number of its line, in hex."""
MAX_TARGETS = 10_000
"""Records that one decision may be about: it is one object, of some 400 KB then."""


class RecordFilter(Contract):
    """Which records are meant: those that match all that is given. ``contains`` looks at question and answer.

    ``reason`` is a piece of the reason that a reviewer gave for rejecting.
    """

    split: Split | None = None
    strategy: Strategy | None = None
    axis: Axis | None = None
    document_id: str | None = None
    status: Status | None = None
    reason: str | None = None
    contains: str | None = None


class Changes(Contract):
    """New texts of a record's last question, its answer, its system message. An empty ``system`` takes it away."""

    question: str | None = Field(default=None, min_length=1, max_length=100_000)
    answer: str | None = Field(default=None, min_length=1, max_length=100_000)
    system: str | None = Field(default=None, max_length=100_000)

    @model_validator(mode="after")
    def _change_something(self) -> "Changes":
        if self.question is None and self.answer is None and self.system is None:
            raise ValueError("give a new question, answer or system message")
        return self


class _ByAuthor(Contract):
    author: str | None = Field(default=None, min_length=1, max_length=200)


class _Selection(_ByAuthor):
    record_ids: tuple[RecordId, ...] = Field(default=(), max_length=MAX_TARGETS)
    filter: RecordFilter | None = None

    @model_validator(mode="after")
    def _one_way_of_naming(self) -> "_Selection":
        if bool(self.record_ids) == (self.filter is not None):
            raise ValueError("name the records by record_ids or by filter, and not by both")
        return self


class Approve(_Selection):
    action: Literal["approve"]


class RejectRecords(_Selection):
    action: Literal["reject"]
    reason: str = Field(min_length=1, max_length=2_000)


class Edit(_ByAuthor):
    """``based_on`` is the version that the author has seen: 0 is the original, else the number of its last edit.

    An answer that the checks speak against is taken with ``override`` alone, and that is recorded.
    """

    action: Literal["edit"]
    record_id: RecordId
    based_on: int = Field(ge=0)
    changes: Changes
    override: bool = False


class Undo(_ByAuthor):
    """Takes a decision back; without ``decision`` the author's last. An undo can itself be undone."""

    action: Literal["undo"]
    decision: int | None = Field(default=None, ge=1)


NewDecision = Annotated[Approve | RejectRecords | Edit | Undo, Field(discriminator="action")]


class Decision(StoredContract):
    """``number`` orders all decisions on a dataset. ``finding`` is what the checks said of an edit taken all the same.

    ``filter`` is how the records were chosen, ``record_ids`` which these were then.
    """

    number: int
    decision_id: str
    dataset_id: str
    author: str
    made_at: datetime = Field(default_factory=utc_now)
    action: Action
    record_ids: Sequence[str] = ()
    filter: RecordFilter | None = None
    reason: str | None = None
    changes: Changes | None = None
    finding: str | None = None
    undoes: int | None = None


class DecisionView(Contract):
    """A decision without its list of records. ``undone_by`` is the number of the undo that took it back."""

    number: int
    author: str
    made_at: datetime
    action: Action
    records: int
    filter: RecordFilter | None = None
    reason: str | None = None
    changes: Changes | None = None
    finding: str | None = None
    undoes: int | None = None
    undone_by: int | None = None


class ReviewedRecord(Contract):
    """A record as the review leaves it: its edits applied. ``version`` is what the next edit must be based on."""

    record: Record
    status: Status
    version: int
    last_decision: DecisionView | None


class ReviewedReject(Contract):
    """What synth rejected. ``changes`` are the edits so far; with them it goes into the frozen set, unless rejected."""

    reject_id: str
    reject: Reject
    status: Status
    version: int
    changes: Changes | None
    last_decision: DecisionView | None


class RecordVersion(Contract):
    """One version of a record, who made it and when. Version 0 is synth's own."""

    version: int
    author: str | None
    made_at: datetime | None
    finding: str | None
    record: Record


class RecordHistory(Contract):
    """All versions of a record that stand, and all decisions on it, oldest first."""

    status: Status
    version: int
    versions: Sequence[RecordVersion]
    decisions: Sequence[DecisionView]


class ReviewSummary(Contract):
    """How far a review has come. ``promoted`` counts rejects of synth that were edited and not rejected again."""

    dataset_id: str
    decisions: int
    reviewers: dict[str, int]
    records: dict[Split, dict[Status, int]]
    promoted: int
    overrides: int
