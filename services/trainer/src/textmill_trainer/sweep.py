"""A short sweep of the learning rate: the same first steps of the run at each candidate, and the best goes on.

Each trial is a small run of its own, warmup and decay included, from the same start on the same batches; afterwards
the model is as before. Few steps flatter high rates, so of rates that end within 1 % of the best the lowest is taken.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from textmill.contracts.runs import EvalMetrics
from textmill.contracts.trainforecast import Sweep, SweepTrial
from textmill.errors import JobFailed
from textmill_trainer import loop
from textmill_trainer.batches import cut
from textmill_trainer.loop import LoopSettings
from textmill_trainer.objective import Objective
from textmill_trainer.observing import StepSeen
from textmill_trainer.probe import untouched

E = TypeVar("E")
FACTORS = (1.0, 3.0, 1 / 3)
"""The likeliest first, so that it is there when time runs out."""
_LEAST_STEPS, _MOST_STEPS = 8, 30
_SHARE = 0.1
"""Of the run's steps, for each candidate."""
_TIE = 1.01
MAX_SECONDS = 1_800.0
_MOST_RATE = 0.5
_EVAL_EXAMPLES = 64


@dataclass
class Losses:
    """Observes the losses of a trial's steps: each of a batch that has not been trained on yet, in the first epoch."""

    seen: list[float]

    def step(self, seen: StepSeen) -> None:
        self.seen.append(seen.metrics.loss)

    def evaluated(self, metrics: EvalMetrics) -> None:
        pass


def trial_steps(total_steps: int) -> int:
    return min(total_steps, max(_LEAST_STEPS, min(_MOST_STEPS, round(total_steps * _SHARE))))


def candidates(rate: float) -> list[float]:
    """Around a rate that others found good, to two digits."""
    return [float(f"{min(rate * factor, _MOST_RATE):.2g}") for factor in FACTORS]


def sweep(
    model: PeftModel | PreTrainedModel,
    objective: Objective[E],
    examples: Sequence[E],
    eval_examples: Sequence[E],
    settings: LoopSettings,
    scratch: Path,
    rates: Sequence[float],
    steps: int,
    *,
    stopping: Callable[[], bool] = lambda: False,
    max_seconds: float = MAX_SECONDS,
) -> Sweep:
    """Try ``rates`` for ``steps`` steps each. Leaves the model, its random state and ``scratch`` as they were.

    Raises:
        JobFailed: every rate diverged.
        Interrupted: ``stopping`` said so.
    """
    began = time.monotonic()
    device = next(p for p in model.parameters() if p.requires_grad).device
    sample = list(eval_examples)[:_EVAL_EXAMPLES]
    trials: list[SweepTrial] = []
    for rate in rates:
        if trials and time.monotonic() - began > max_seconds:
            break
        trial = replace(settings, learning_rate=rate, max_steps=steps, evaluations=0, checkpoints=0)
        losses = Losses([])
        with untouched(model, device):
            try:
                loop.train(model, objective, examples, trial, scratch, observers=[losses], stopping=stopping)
                loss = (
                    mean_loss(model, objective, sample, settings.max_padded_tokens, device) if sample else _late(losses)
                )
            except JobFailed:
                loss = math.nan  # the loop stops at the first loss or gradient that is no number
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        diverged = not math.isfinite(loss) or loss > losses.seen[0] * 1.5
        trials.append(SweepTrial(learning_rate=rate, steps=len(losses.seen), loss=None if diverged else loss))
    return Sweep(
        trials=trials,
        chosen=best(trials),
        measured_on=f"{len(sample)} eval examples" if sample else "the later half of its own batches",
        seconds=time.monotonic() - began,
    )


def best(trials: Sequence[SweepTrial]) -> float:
    """The lowest rate within 1 % of the least loss. Raises ``JobFailed`` when all diverged."""
    whole = [(t.learning_rate, t.loss) for t in trials if t.loss is not None]
    if not whole:
        rates = ", ".join(f"{t.learning_rate:g}" for t in trials)
        raise JobFailed(f"all learning rates of the sweep diverged ({rates}): set a lower one, and look at the records")
    least = min(loss for _, loss in whole)
    return min(rate for rate, loss in whole if loss <= least * _TIE)


@torch.no_grad()
def mean_loss(
    model: PeftModel | PreTrainedModel,
    objective: Objective[E],
    examples: Sequence[E],
    max_padded_tokens: int,
    device: torch.device,
) -> float:
    """The objective's loss over ``examples``, dropout off."""
    core = loop.plain_model(model)
    core.train(False)
    found = [objective.losses(core, part, device) for part in cut(examples, objective.tokens, max_padded_tokens)]
    return sum(f.losses_R.sum().item() for f in found) / sum(sum(f.weights) for f in found)


def _late(losses: Losses) -> float:
    late = losses.seen[len(losses.seen) // 2 :]
    return sum(late) / len(late)
