"""The replay: trains once more from the same start without some records, and measures the loss of those.

The model is handed back as it was found, weight for weight: what is published is the run's, not the replay's. Bounded:
``STEPS_SHARE`` of the run's steps, so it costs at most that share of the run's time.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from textmill_trainer import loop
from textmill_trainer.batches import cut
from textmill_trainer.checkpoint import trained_weights
from textmill_trainer.loop import LoopSettings
from textmill_trainer.objective import Objective

E = TypeVar("E")
STEPS_SHARE = 0.5
Weights = Mapping[str, torch.Tensor]


def copy_weights(model: PeftModel | PreTrainedModel) -> Weights:
    """A copy of what training changes, by name."""
    return {name: p.detach().clone() for name, p in trained_weights(model).items()}


@torch.no_grad()
def set_weights(model: PeftModel | PreTrainedModel, weights: Weights) -> None:
    for name, parameter in trained_weights(model).items():
        parameter.copy_(weights[name])


def replay(
    model: PeftModel | PreTrainedModel,
    start: Weights,
    objective: Objective[E],
    examples: Sequence[E],
    left_out: frozenset[str],
    settings: LoopSettings,
    total_steps: int,
    folder: Path,
    stopping: Callable[[], bool],
) -> dict[str, float]:
    """Train from ``start`` without the left-out records; their losses then, in nats a supervised token, by record id.

    ``total_steps`` are the run's. ``folder`` is emptied first. Raises what ``loop.train`` raises; the model is as it
    was before in any case.
    """
    kept = [e for e in examples if objective.record_id(e) not in left_out]
    unseen = [e for e in examples if objective.record_id(e) in left_out]
    shutil.rmtree(folder, ignore_errors=True)
    steps = max(1, round(STEPS_SHARE * total_steps))
    short = replace(settings, max_steps=steps, checkpoints=0, evaluations=0, early_stopping=0, keep="last")
    with _weights_kept(model):
        set_weights(model, start)
        loop.train(model, objective, kept, short, folder, stopping=stopping)
        return losses_of(loop.plain_model(model), objective, unseen, settings.max_padded_tokens)


@torch.no_grad()
def losses_of(
    model: PreTrainedModel, objective: Objective[E], examples: Sequence[E], max_padded_tokens: int
) -> dict[str, float]:
    """Each record's mean loss in nats a supervised token, with dropout off; where it has several examples, theirs."""
    device = next(model.parameters()).device
    was_training = model.training
    model.train(False)
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for part in cut(examples, objective.tokens, max_padded_tokens):
        found = objective.losses(model, part, device)
        for example, loss, weight in zip(part, found.losses_R.tolist(), found.weights, strict=True):
            record_id = objective.record_id(example)
            sums[record_id] = sums.get(record_id, 0.0) + loss
            weights[record_id] = weights.get(record_id, 0.0) + weight
    model.train(was_training)
    return {record_id: sums[record_id] / weights[record_id] for record_id in sums}


@contextmanager
def _weights_kept(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    kept = copy_weights(model)
    try:
        yield
    finally:
        set_weights(model, kept)
