"""The metrics of a run as JSON lines in one file: appended by the loop, read by the worker and the API. No torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from textmill.contracts.runs import EvalMetrics, StepMetrics, TrainingSummary

Metric = Annotated[StepMetrics | EvalMetrics, Field(discriminator="kind")]
_METRIC: TypeAdapter[StepMetrics | EvalMetrics] = TypeAdapter(Metric)


class MetricsFile:
    """Appends whole lines. Resuming starts from the checkpoint's copy: lines of steps not kept are gone."""

    def __init__(self, path: Path, resume_from: Path | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(resume_from.read_bytes() if resume_from else b"")

    def append(self, metric: StepMetrics | EvalMetrics) -> None:
        with self.path.open("ab") as file:
            file.write(metric.to_json() + b"\n")


def parse_metrics(data: bytes) -> Iterator[StepMetrics | EvalMetrics]:
    """All whole lines; a last line without its end is still being written."""
    whole, _, _ = data.rpartition(b"\n")
    for line in whole.splitlines():
        yield _METRIC.validate_json(line)


def summarize(path: Path, resumed_from_step: int, device: str) -> TrainingSummary:
    """What a finished run's metrics add up to."""
    metrics = list(parse_metrics(path.read_bytes()))
    steps = [m for m in metrics if isinstance(m, StepMetrics)]
    evals = [m for m in metrics if isinstance(m, EvalMetrics)]
    tokens, seconds = sum(m.tokens for m in steps), sum(m.seconds for m in steps)
    return TrainingSummary(
        steps=len(steps),
        epochs=steps[-1].epoch,
        first_loss=steps[0].loss,
        final_loss=steps[-1].loss,
        eval_loss_before=evals[0].eval_loss if evals else None,
        eval_loss_after=evals[-1].eval_loss if evals else None,
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        seconds=seconds,
        resumed_from_step=resumed_from_step,
        device=device,
    )
