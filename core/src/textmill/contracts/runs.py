"""What the trainer writes: metrics of a run, and the model it publishes with its lineage."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now


class StepMetrics(StoredContract):
    """One optimizer step. ``loss`` is the mean negative log-likelihood over supervised tokens, in nats."""

    kind: Literal["step"] = "step"
    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_s: float
    seconds: float


class EvalMetrics(StoredContract):
    """The loss on the eval split after ``step`` steps, in nats per supervised token."""

    kind: Literal["eval"] = "eval"
    step: int
    epoch: float
    eval_loss: float


class MergeCheck(Contract):
    """The merged model against the live adapter on real records.

    ``mean_kl`` in nats a token, ``top1_agreement`` a share of tokens.
    """

    mean_kl: float
    top1_agreement: float
    tokens: int


class TrainingSummary(Contract):
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


class Lineage(Contract):
    """The way back: model, run, dataset, corpus, documents."""

    run_id: str
    dataset_id: str
    corpus_id: str
    document_ids: Sequence[str]
    base_model: str
    base_sha256: str


class ModelManifest(StoredContract):
    """A published model: merged safetensors with tokenizer and chat template under ``prefix``. Written last.

    ``files`` maps the name of each file under ``prefix`` to its SHA-256 in hex, for those who fetch it to check.
    """

    model_id: str
    name: str
    prefix: str
    files: dict[str, str]
    adapter_prefix: str
    metrics_key: str
    merge: MergeCheck
    training: TrainingSummary
    lineage: Lineage
    created_at: datetime = Field(default_factory=utc_now)
