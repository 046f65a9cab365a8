"""What the trainer writes: metrics of a run, and the model it publishes with its lineage."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from textmill.contracts.anomalies import AnomalyCounts
from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.gates import MergedInto
from textmill.contracts.masking import MaskingSummary

VerdictWord = Literal["underfit", "good", "overfit", "memorized", "undecided"]
"""Learnt too little; learnt what was asked; best before its end, or weaker in other words than in the trained ones;
recites what it was trained on and fails when asked otherwise; not measured."""


class StepMetrics(StoredContract):
    """One optimizer step. ``loss`` is the mean negative log-likelihood over supervised tokens, in nats.

    ``digest`` chains all that the run's steps so far followed from and came to: equal digests, equal runs.
    ``memory_bytes`` is the most that was held so far: on the GPU, or by the process; 0 where it can't be told.
    """

    kind: Literal["step"] = "step"
    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_s: float
    seconds: float
    memory_bytes: int = 0
    digest: str = ""


class EvalMetrics(StoredContract):
    """The model after ``step`` steps, measured on fixed samples with dropout off. Losses in nats per supervised token.

    ``score`` decides which checkpoint is best; lower is better (docs/decisions/0010). ``eval_loss`` is on documents
    never trained on, ``train_loss`` on records trained on, ``heldout_loss`` on their facts in wordings never trained
    on. Where the dataset has no such wordings, ``probe_loss`` is on their questions in other words of our own.

    The recalls are shares of records whose whole answer would be recited word for word: asked as in training, asked in
    those other wordings, and given a neutral request and the answer's first words. The accuracies are the same of
    tokens, each after the right ones before it. ``kl_to_base`` is in nats a token on general prompts. ``seconds`` is
    what measuring cost.
    """

    kind: Literal["eval"] = "eval"
    step: int
    epoch: float
    eval_loss: float | None = None
    train_loss: float | None = None
    heldout_loss: float | None = None
    probe_loss: float | None = None
    score: float = Field(default_factory=lambda data: first_known(data))
    loss_by_document: dict[str, float] = Field(default_factory=dict)
    exact_recall: float | None = None
    reworded_recall: float | None = None
    prefix_recall: float | None = None
    exact_accuracy: float | None = None
    reworded_accuracy: float | None = None
    kl_to_base: float | None = None
    forgetting_budget: float | None = None
    seconds: float = 0.0

    @property
    def reworded_loss(self) -> float | None:
        """On learnt facts in other wordings: the dataset's, or else our own."""
        return self.heldout_loss if self.heldout_loss is not None else self.probe_loss

    @property
    def forgets(self) -> bool:
        """Whether the model has moved further from its base than the run's budget allows."""
        return self.kl_to_base is not None and self.kl_to_base > (self.forgetting_budget or math.inf)


def first_known(losses: Mapping[str, object]) -> float:
    """The loss that the score is: of held-out wordings, else of ours, else of eval documents, else of trained ones."""
    order = ("heldout_loss", "probe_loss", "eval_loss", "train_loss")
    known = [loss for name in order if isinstance(loss := losses.get(name), float)]
    if not known:
        raise ValueError(f"an evaluation must have measured one of {', '.join(order)}")
    return known[0]


class RunJob(StoredContract):
    """Which job trains a run."""

    run_id: str
    job_id: str


class MergeCheck(Contract):
    """The merged model against the live adapter on real records.

    ``mean_kl`` in nats a token, ``top1_agreement`` a share of tokens, ``nll`` the merged model's loss on them beside
    ``trained_nll``. ``kl_to_base`` is how far training has moved the model, in the same unit as ``mean_kl``.
    """

    mean_kl: float
    top1_agreement: float
    tokens: int
    into: MergedInto | None = None
    nll: float | None = None
    trained_nll: float | None = None
    kl_to_base: float | None = None


class TrainingSummary(Contract):
    """``best_step`` is where the kept weights are from, if not the last step. ``digest`` ends the steps' chain."""

    steps: int
    epochs: float
    first_loss: float
    final_loss: float
    eval_loss_before: float | None
    eval_loss_after: float | None
    tokens: int
    tokens_per_s: float
    seconds: float
    resumed_from_step: int
    device: str
    best_step: int | None = None
    stopped_early: bool = False
    digest: str = ""
    learning_rate: float | None = None
    rank: int | None = None


class Lineage(Contract):
    """The way back: model, run, what it was trained on, documents.

    A model of raw text has no dataset; one of preferences has neither dataset nor corpus.
    """

    run_id: str
    dataset_id: str | None = None
    corpus_id: str | None = None
    preferences_id: str | None = None
    document_ids: Sequence[str]
    base_model: str
    base_sha256: str


class VerdictNote(Contract):
    """The short form, in the model's manifest."""

    verdict: VerdictWord
    sentence: str
    forgets: bool = False


class ModelManifest(StoredContract):
    """A published model: merged safetensors with tokenizer and chat template under ``prefix``. Written last.

    ``files`` maps the name of each file under ``prefix`` to its SHA-256 in hex, for those who fetch it to check. A
    model of which all weights were trained has no adapter.
    """

    model_id: str
    name: str
    prefix: str
    files: dict[str, str]
    adapter_prefix: str | None
    metrics_key: str
    merge: MergeCheck
    training: TrainingSummary
    lineage: Lineage
    verdict: VerdictNote | None = None
    masking: MaskingSummary | None = None
    anomalies: AnomalyCounts | None = None
    created_at: datetime = Field(default_factory=utc_now)
