"""The training loop: reads top to bottom, stops at the first number that isn't one, resumes exactly.

Everything a step does follows from (records, settings, seed, step): a run that was killed and resumed ends with the
adapter of one that wasn't, bit for bit on the CPU. Knows nothing of jobs, stores or how the model was loaded.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import JobFailed
from textmill_trainer.batches import batch_order, collate, microbatches
from textmill_trainer.checkpoint import METRICS_FILE, Position, checkpoints, load_checkpoint, save_checkpoint
from textmill_trainer.loss import supervised_loss_sum
from textmill_trainer.metrics import MetricsFile
from textmill_trainer.prepare import Example, dataset_digest

MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.99)
"""A second moment that forgets within 100 steps: fine-tuning runs are short."""


@dataclass(frozen=True)
class LoopSettings:
    """``evaluations`` and ``checkpoints`` are how many, spread evenly; the last of each is at the end."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    evaluations: int
    checkpoints: int
    seed: int
    max_padded_tokens: int
    max_steps: int | None = None


class Interrupted(Exception):
    """The run was asked to stop. It has checkpointed and can be resumed."""


def train(
    model: PeftModel,
    examples: Sequence[Example],
    eval_examples: Sequence[Example],
    settings: LoopSettings,
    folder: Path,
    report: Callable[[StepMetrics | EvalMetrics, int], None],
    stopping: Callable[[], bool],
) -> int:
    """Train the adapter in place. Returns the step that the run was resumed from, 0 for none.

    Writes ``folder/metrics.jsonl`` and ``folder/checkpoints/``; resumes from the newest checkpoint there.
    ``report`` gets each metric with the run's number of steps; ``stopping`` is asked before each step.

    Raises:
        JobFailed: a loss or a gradient is NaN or infinite; the message names the records of the batch.
        Interrupted: ``stopping`` said so.
    """
    core = plain_model(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = make_optimizer(parameters, settings.learning_rate, device)
    steps_per_epoch = math.ceil(len(examples) / settings.batch_size)
    total_steps = min(settings.epochs * steps_per_epoch, settings.max_steps or sys.maxsize)
    eval_at = evenly(total_steps, settings.evaluations if eval_examples else 0)
    save_at = evenly(total_steps, settings.checkpoints)
    run_digest = digest_run(examples, eval_examples, settings)
    lengths = [len(e.token_ids) for e in examples]

    torch.manual_seed(settings.seed)
    start = 0
    saved = checkpoints(folder / "checkpoints")
    if saved:
        start = load_checkpoint(saved[-1], model, optimizer, run_digest).step
    metrics = MetricsFile(folder / METRICS_FILE, resume_from=saved[-1] / METRICS_FILE if saved else None)

    def save(step: int) -> None:
        save_checkpoint(folder / "checkpoints", model, optimizer, Position(step, run_digest), metrics.path)

    def measure(step: int) -> None:
        loss = mean_loss(core, eval_examples, settings.max_padded_tokens, device)
        evaluated = EvalMetrics(step=step, epoch=step / steps_per_epoch, eval_loss=loss)
        metrics.append(evaluated)
        report(evaluated, total_steps)

    if eval_at and start == 0:
        measure(0)
    model.train()
    for step in range(start, total_steps):
        if stopping():
            save(step)
            raise Interrupted
        began = time.perf_counter()
        epoch, index = divmod(step, steps_per_epoch)
        batch = [examples[i] for i in batch_order(lengths, settings.batch_size, settings.seed, epoch)[index]]
        supervised_tokens = sum(sum(e.supervised[1:]) for e in batch)

        loss = 0.0
        for part in microbatches(batch, settings.max_padded_tokens):
            part_loss = supervised_loss_sum(core, collate(part).to(device)) / supervised_tokens
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += part_loss.item()
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM).item()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise JobFailed(_not_a_number(loss, gradient_norm, step, batch))
        learning_rate = learning_rate_at(step, total_steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        seconds = time.perf_counter() - began
        tokens = sum(len(e.token_ids) for e in batch)
        done = step + 1
        metric = StepMetrics(
            step=done, epoch=done / steps_per_epoch, loss=loss, learning_rate=learning_rate,
            gradient_norm=gradient_norm, tokens=tokens, tokens_per_s=tokens / seconds, seconds=seconds,
        )  # fmt: skip
        metrics.append(metric)
        report(metric, total_steps)
        if done in eval_at:
            measure(done)
        if done in save_at:
            save(done)
    return start


def plain_model(model: PeftModel) -> PreTrainedModel:
    """The transformers model with the adapter's layers in it."""
    core = model.get_base_model()
    if not isinstance(core, PreTrainedModel):
        raise TypeError(f"expected a transformers model below the adapter, got {type(core).__name__}")
    return core


def make_optimizer(parameters: list[torch.nn.Parameter], learning_rate: float, device: torch.device) -> Optimizer:
    """AdamW without decay: the adapter starts at zero change. On CUDA its state is paged out when memory is short."""
    if device.type == "cuda":
        from bitsandbytes.optim.adamw import PagedAdamW32bit

        paged = PagedAdamW32bit(parameters, lr=learning_rate, betas=BETAS, weight_decay=0.0)  # type: ignore[no-untyped-call]
        return cast(Optimizer, paged)
    return AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=0.0)


def learning_rate_at(step: int, total_steps: int, settings: LoopSettings) -> float:
    """Linear warmup over ``warmup_ratio`` of the steps, then linear to zero (better than cosine: arXiv 2502.15938)."""
    warmup = settings.warmup_ratio * total_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * (total_steps - step) / (total_steps - warmup)


def evenly(total: int, count: int) -> frozenset[int]:
    """``count`` points in 1..total, the last one ``total``; none for a count of 0."""
    return frozenset(max(1, round(total * i / count)) for i in range(1, count + 1))


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, examples: Sequence[Example], max_padded_tokens: int, device: torch.device
) -> float:
    """Mean negative log-likelihood per supervised token, in nats, with dropout off."""
    was_training = model.training
    model.train(False)
    total = sum(
        supervised_loss_sum(model, collate(part).to(device)).item()
        for part in microbatches(examples, max_padded_tokens)
    )
    model.train(was_training)
    return total / sum(sum(e.supervised[1:]) for e in examples)


def digest_run(examples: Sequence[Example], eval_examples: Sequence[Example], settings: LoopSettings) -> str:
    """A hash of all that a run's numbers follow from, save the base model."""
    parts = (dataset_digest(examples), dataset_digest(eval_examples), settings)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _not_a_number(loss: float, gradient_norm: float, step: int, batch: Sequence[Example]) -> str:
    return (
        f"step {step + 1}: loss {loss}, gradient norm {gradient_norm}; both must be finite. The batch was "
        f"{', '.join(e.record_id for e in batch)}. Look at these records, or lower learning_rate"
    )
