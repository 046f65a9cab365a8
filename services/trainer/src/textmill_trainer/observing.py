"""What the training loop shows of itself, step by step, to whoever watches. No torch: observers get plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from textmill.contracts.runs import EvalMetrics, StepMetrics


@dataclass(frozen=True)
class RecordLoss:
    """The loss of one record at the step that trained on it: mean nats over its ``tokens`` supervised tokens."""

    record_id: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class StepSeen:
    metrics: StepMetrics
    total_steps: int
    records: Sequence[RecordLoss]


class Observer(Protocol):
    """Sees every step and every evaluation, in order; after a resume from the step resumed from. Must be cheap."""

    def step(self, seen: StepSeen) -> None: ...

    def evaluated(self, metrics: EvalMetrics) -> None: ...
