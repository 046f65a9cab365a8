"""Steps, tokens, time and cost of a run, from its plan and what a probe measured; afterwards, how far off that was.

No torch. Times rest on few readings on a machine that may be busy, so each comes with an interval that says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from textmill.contracts.preflight import Interval
from textmill.contracts.runs import TrainingSummary
from textmill.contracts.trainforecast import ForecastTruth, MeasuredStep, TrainForecast
from textmill.contracts.training import Method
from textmill_trainer.geometry import Geometry

_SPREAD = 0.25
"""How far one reading of a step's speed may be from the run's mean: seen up to a fifth on shared cores."""
_COLD = 2.0
"""How many times as long as a warm step one took that had to get its memory first: 1.6 to 2.0, two cores."""
_FORWARD_SHARE = {"qlora": 0.5, "lora": 0.5, "full": 1 / 3}
"""Of a step's arithmetic: beside frozen weights backward computes no weight gradients."""
_DISK_BYTES_PER_S = 200e6
_MERGE_BYTES_PER_S = 30e6
"""Of the bf16 model, through both merges, their loading and their checks: SmolLM2-135M, two cores."""


@dataclass(frozen=True)
class Extent:
    """What a run will go through. ``eval_tokens`` are those of one evaluation."""

    steps: int
    tokens: int
    evaluations: int
    eval_tokens: int
    checkpoints: int
    steps_done: int = 0


def seconds_by_stage(
    extent: Extent, tokens_per_s: float, geometry: Geometry, method: Method, trained: int, sweep_s: float = 0.0
) -> dict[str, float]:
    """Expected seconds of each part of the run, the loading of the model aside."""
    forward_tokens_per_s = tokens_per_s / _FORWARD_SHARE[method]
    stages = {
        "sweep": sweep_s,
        "training": extent.tokens / tokens_per_s,
        "evaluations": (extent.evaluations + 1) * extent.eval_tokens / forward_tokens_per_s,
        "checkpoints": extent.checkpoints * 12 * trained / _DISK_BYTES_PER_S,
        "merge": 2 * geometry.parameters / _MERGE_BYTES_PER_S,
    }
    return {stage: seconds for stage, seconds in stages.items() if seconds}


def tokens_per_s(steps: Sequence[MeasuredStep]) -> float:
    """Of the last reading, the warmest."""
    return steps[-1].tokens / steps[-1].seconds


def between(expected: float, steps: Sequence[MeasuredStep] = ()) -> Interval:
    """Around ``expected``: a quarter each way, and as low as half of that if only a cold step was read."""
    faster = _COLD if steps and not steps[-1].warm else 1.0
    return Interval(expected=expected, low=expected / faster * (1 - _SPREAD), high=expected * (1 + _SPREAD))


def cost_of(seconds: Interval | None, price_per_hour: float) -> Interval | None:
    """In the money of the price; None without one."""
    if seconds is None or not price_per_hour:
        return None
    low, high = seconds.low, seconds.high
    hours = 3_600 / price_per_hour
    return Interval(
        expected=seconds.expected / hours,
        low=None if low is None else low / hours,
        high=None if high is None else high / hours,
    )


def settle(forecast: TrainForecast, summary: TrainingSummary) -> TrainForecast:
    """The forecast with what became of it. Only training is compared: it is what the summary times."""
    expected = forecast.seconds_by_stage.get("training")
    off = expected / summary.seconds - 1 if expected and summary.seconds else 0.0
    truth = ForecastTruth(steps=summary.steps, tokens=summary.tokens, seconds=summary.seconds, seconds_off=off)
    return forecast.model_copy(update={"truth": truth})
