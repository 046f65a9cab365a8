"""What a preflight finds out: what the whole job will take and yield, and what the base model knows already."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.datasets import BudgetSpent, Cost, Counts, Strategy


class Interval(Contract):
    """``low`` and ``high`` are None where too little was seen to give them."""

    expected: float
    low: float | None = None
    high: float | None = None


class Forecast(Contract):
    """Totals of the whole corpus, what the pilot has paid for included. ``cost`` is in the money of the job's prices.

    ``seconds`` is for ``concurrency`` calls at a time; None when the pilot found all its calls in the ledger.
    """

    confidence: float
    calls: Interval
    prompt_tokens: Interval
    completion_tokens: Interval
    cost: Interval
    accepted: Interval
    seconds: Interval | None
    concurrency: int


class ValueCheck(Contract):
    """Questions of the pilot's records put to the base model, without and with the passage.

    ``known``: right without it. ``learnable``: right only with it. ``neither``: right in neither case. ``unanswered``:
    the model gave no answer.
    """

    base_model: str
    asked: int
    known: int
    learnable: int
    neither: int
    unanswered: int


class KnownItem(Contract):
    """A question that the base model answers without the passage."""

    passage_id: str
    question_id: str


class PreflightManifest(StoredContract):
    """``passages`` were tried of the ``concerned``, of which anything is asked at all, of ``corpus_passages``.

    ``known`` can be left out by a synth job. ``value`` is None where the base model couldn't be asked. ``calls`` and
    ``cost`` are the preflight's own, those of the value check included. ``notes`` say what the figures rest on.
    """

    preflight_id: str
    corpus_id: str
    passages: int
    concerned: int
    corpus_passages: int
    counts: Counts
    counts_by_strategy: dict[Strategy, Counts]
    forecast: Forecast
    value: ValueCheck | None
    known: Sequence[KnownItem]
    calls: int
    calls_reused: int
    cost: Cost
    budget_spent: BudgetSpent | None = None
    notes: Sequence[str] = ()
    created_at: datetime = Field(default_factory=utc_now)
