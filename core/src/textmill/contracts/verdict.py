"""How a run went, in words: whether the model learnt the facts, too little, or only the sentences."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract
from textmill.contracts.runs import EvalMetrics, VerdictNote, VerdictWord

Wordings = Literal["heldout", "template"]
"""Where other ways of asking came from: the dataset's own held-out wordings, or our templates around its questions."""


class DocumentGap(Contract):
    """A document never trained on: its loss, how that rose since the start, and its distance to trained records'."""

    document_id: str
    loss: float
    rise: float | None
    gap: float | None


class TrainVerdict(StoredContract):
    """What a run led to, judged by its last evaluation, and the figures that say so.

    ``start`` is the base model, ``last`` the end of the run, ``kept`` the checkpoint that was published. ``sampled``
    counts the records behind each figure. Perplexities are of the answers to other ways of asking, of the base and of
    what was kept; on the eval split where there are none. ``replayed`` records are general ones and not the dataset's.
    """

    verdict: VerdictWord
    sentence: str
    advice: Sequence[str] = ()
    warnings: Sequence[str] = ()
    wordings: Wordings | None = None
    start: EvalMetrics | None = None
    last: EvalMetrics | None = None
    kept: EvalMetrics | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    documents: Sequence[DocumentGap] = ()
    sampled: dict[str, int] = Field(default_factory=dict)
    records: int = 0
    replayed: int = 0
    evaluating_seconds: float = 0.0
    training_seconds: float = 0.0

    @property
    def note(self) -> VerdictNote:
        return VerdictNote(
            verdict=self.verdict, sentence=self.sentence, forgets=self.kept is not None and self.kept.forgets
        )
