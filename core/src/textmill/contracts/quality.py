"""What is found about a dataset as a whole: the rows left out of it and why, findings on rows that stay, the balance.

A report names records by id alone. The text of a row stands in the dataset, or in its drop ledger.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract
from textmill.contracts.datasets import Axis, Record, Split, Strategy
from textmill.contracts.documents import Language

DropRule = Literal["near_duplicate", "contamination", "heldout_wording", "pii"]
"""``near_duplicate`` asks and answers what an earlier row does. ``contamination`` tells a row of ``eval``,
``heldout_wording`` asks in a wording of ``heldout``; both drop from ``train``. ``pii`` holds personal data."""
PiiKind = Literal["mobile", "resident_id", "bank_card", "email"]
"""Chinese mobile numbers; resident identity numbers and bank cards whose check digits are right; e-mail."""


class Drop(StoredContract):
    """A row that was made and left out. ``value`` reached the ``threshold`` of ``rule``; ``record`` is all of it.

    ``rule`` is a ``DropRule``, or the reason why a way of asking wasn't kept. ``against`` is the record that it is too
    much like, None where there is none. ``text`` is its question and answer.
    """

    record_id: str
    split: Split
    rule: str
    value: float
    threshold: float
    text: str
    against: str | None
    record: Record


class RowFinding(StoredContract):
    """What is remarkable about a row. A ``conflict`` asks nearly what ``against`` asks, and answers something else."""

    record_id: str
    split: Split
    finding: Literal["conflict", "pii", "refusal"]
    pii: Sequence[PiiKind] = ()
    against: str | None = None
    similarity: float | None = None


class Lengths(Contract):
    """How long texts are, in characters. ``histogram`` counts them by the power of two that they are shorter than."""

    least: int = 0
    mean: float = 0.0
    most: int = 0
    histogram: dict[int, int] = Field(default_factory=dict)
    under_20: int = 0


class Balance(Contract):
    """What a split is made of, in rows. ``answers_per_document`` says how many documents have how many answers."""

    rows: int = 0
    answers: int = 0
    question_lengths: Lengths = Lengths()
    answer_lengths: Lengths = Lengths()
    languages: dict[Language, int] = Field(default_factory=dict)
    strategies: dict[Strategy, int] = Field(default_factory=dict)
    axes: dict[Axis, int] = Field(default_factory=dict)
    ways: dict[str, int] = Field(default_factory=dict)
    answers_per_document: dict[int, int] = Field(default_factory=dict)
    largest_document_rows: int = 0


class QualityReport(StoredContract):
    """The dataset as a whole. ``findings`` and ``pii`` count records; which ones, the lines of ``findings_key`` say.

    ``balance`` is of the rows that were written. ``warnings`` are sentences for the owner.
    """

    rows_made: int
    dropped_by_rule: dict[str, int]
    findings: dict[str, int]
    pii: dict[PiiKind, int]
    balance: dict[Split, Balance]
    warnings: Sequence[str]
    findings_key: str
