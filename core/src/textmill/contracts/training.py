"""How a model is trained: the options of a train job. What a run writes is in ``textmill.contracts.runs``."""

from typing import Annotated, Literal

from pydantic import Field

from textmill.contracts.base import Contract

Objective = Literal["supervised", "pretrain", "dpo"]
"""Answers to questions; raw text, every token of it; or which of two answers is preferred."""
Method = Literal["qlora", "lora", "full"]
"""An adapter beside NF4 weights, an adapter beside 16-bit weights, or all weights themselves."""
AdapterKind = Literal["lora", "rslora", "dora"]
SOURCE_OF_OBJECTIVE: dict[Objective, str] = {
    "supervised": "dataset_id",
    "pretrain": "corpus_id",
    "dpo": "preferences_id",
}
"""Which field of a train job names what it learns from."""


class TrainOptions(Contract):
    """How ``base_model`` (the trainer's own setting if left out) is trained. Lengths are in tokens.

    ``step_tokens`` fills each step up to so many tokens instead of ``batch_size`` records.
    ``early_stopping`` ends the run after so many evaluations without a better one; 0 never does.
    ``forgetting_budget`` is the mean KL to the base on general prompts, in nats a token, past which a run is warned of;
    ``replay_share`` of each epoch's records are then general ones, answered by the base itself.
    ``quarantine`` says what becomes of records whose loss stands out: nothing, a report, or a replay without them.
    ``leave_out`` are ids of training records that this run doesn't train on, such as a former run's confirmed suspects.
    ``merge_max_kl`` in nats a token: a merged model further than this from the trained one is not published.
    ``eval_share`` of the documents are held out where the source brings no split of its own (raw text, preferences);
    the model goes on from each of ``sample_prompts`` at each evaluation of a run on raw text.
    """

    base_model: str | None = None
    objective: Objective = "supervised"
    method: Method = "qlora"
    adapter: AdapterKind = "lora"
    epochs: int = Field(default=3, ge=1, le=1_000)
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    batch_size: int = Field(default=16, ge=1, le=4_096)
    step_tokens: int | None = Field(default=None, ge=64, le=100_000_000)
    packing: Literal["auto", "on", "off"] = "auto"
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | Literal["auto", "sweep"] = 2e-4
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    rank: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = 16
    alpha: int = Field(default=32, ge=1, le=4_096)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_tokens: int = Field(default=1_024, ge=16, le=1_000_000)
    dpo_beta: float = Field(default=0.1, gt=0, le=10)
    eval_share: float = Field(default=0.1, ge=0, le=0.5)
    sample_prompts: tuple[Annotated[str, Field(min_length=1, max_length=500)], ...] = Field(default=(), max_length=8)
    evaluations: int = Field(default=4, ge=0, le=1_000)
    early_stopping: int = Field(default=0, ge=0, le=1_000)
    keep: Literal["best", "last"] = "best"
    forgetting_budget: float = Field(default=0.5, gt=0, le=100)
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    quarantine: Literal["off", "report", "replay"] = "report"
    leave_out: tuple[str, ...] = Field(default=(), max_length=100_000)
    merge_max_kl: float = Field(default=1e-2, gt=0, le=10)
    checkpoints: int = Field(default=4, ge=0, le=1_000)
    seed: int = 0
