"""The metrics of a run as JSON lines in one file: written by the loop, read by the worker and the API. No torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from textmill.contracts.runs import EvalMetrics, StepMetrics, TrainingSummary

Metric = Annotated[StepMetrics | EvalMetrics, Field(discriminator="kind")]
_METRIC: TypeAdapter[StepMetrics | EvalMetrics] = TypeAdapter(Metric)


def parse_metrics(data: bytes) -> Iterator[StepMetrics | EvalMetrics]:
    """All whole lines; a last line without its end is still being written."""
    whole, _, _ = data.rpartition(b"\n")
    for line in whole.splitlines():
        yield _METRIC.validate_json(line)


def summarize(
    path: Path, resumed_from_step: int, device: str, best_step: int | None = None, stopped_early: bool = False
) -> TrainingSummary:
    """What a finished run's metrics add up to. ``eval_loss_after`` is of the step that was kept."""
    metrics = list(parse_metrics(path.read_bytes()))
    steps = [m for m in metrics if isinstance(m, StepMetrics)]
    evals = [m for m in metrics if isinstance(m, EvalMetrics)]
    kept = [m for m in evals if best_step is None or m.step == best_step]
    tokens, seconds = sum(m.tokens for m in steps), sum(m.seconds for m in steps)
    return TrainingSummary(
        steps=len(steps),
        epochs=steps[-1].epoch,
        first_loss=steps[0].loss,
        final_loss=steps[-1].loss,
        eval_loss_before=evals[0].eval_loss if evals else None,
        eval_loss_after=kept[-1].eval_loss if kept else None,
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        seconds=seconds,
        resumed_from_step=resumed_from_step,
        device=device,
        best_step=best_step,
        stopped_early=stopped_early,
        digest=steps[-1].digest,
    )
