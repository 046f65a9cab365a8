"""The training loop: reads top to bottom, stops at the first number that isn't one, resumes exactly.

Everything a step does follows from (examples, settings, seed, step): a run that was killed and resumed ends with the
weights of one that wasn't, bit for bit on the CPU. Knows nothing of jobs, stores, how the model was loaded, or what
the objective is.
"""

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from peft import PeftModel
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import JobFailed
from textmill_trainer.batches import cut
from textmill_trainer.checkpoint import (
    Position,
    checkpoints,
    damaged,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    trained_weights,
)
from textmill_trainer.digests import seed_step, step_digest, weights_digest, weights_due
from textmill_trainer.distributed import ALONE, Ranks, padded_turns
from textmill_trainer.history import History
from textmill_trainer.objective import ExampleLosses, Objective
from textmill_trainer.observing import Observer, RecordLoss, StepSeen
from textmill_trainer.order import Plan
from textmill_trainer.prepare import dataset_digest
from textmill_trainer.record_losses import StepLosses

E = TypeVar("E")
MAX_GRADIENT_NORM = 1.0
BETAS = (0.9, 0.99)
"""A second moment that forgets within 100 steps: fine-tuning runs are short."""


@dataclass(frozen=True)
class LoopSettings:
    """``evaluations`` and ``checkpoints`` are how many, spread evenly; the last of each is at the end.

    ``packed`` says that the objective packs: microbatches are cut by their tokens alone. ``step_tokens``,
    ``early_stopping`` and ``keep`` are those of ``TrainOptions``.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    evaluations: int
    checkpoints: int
    seed: int
    max_padded_tokens: int
    max_steps: int | None = None
    step_tokens: int | None = None
    packed: bool = False
    early_stopping: int = 0
    keep: Literal["best", "last"] = "last"


@dataclass(frozen=True)
class Trained:
    """How a run went. ``resumed_from`` is the step it went on from, 0 for none; ``best_step`` is where the weights are
    from, if not from the last step; ``digest`` ends the chain."""

    resumed_from: int
    total_steps: int
    digest: str
    best_step: int | None = None
    stopped_early: bool = False


class Interrupted(Exception):
    """The run was asked to stop. It has checkpointed and can be resumed."""


def train(
    model: PeftModel | PreTrainedModel,
    objective: Objective[E],
    examples: Sequence[E],
    settings: LoopSettings,
    folder: Path,
    *,
    evaluate: Callable[[int, float], EvalMetrics] | None = None,
    observers: Sequence[Observer] = (),
    stopping: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train in place all weights that require gradients, alone or as one of ``ranks``, each with a folder of its own.

    Writes ``folder/metrics.jsonl``, ``folder/record_losses.jsonl`` and ``folder/checkpoints/``; resumes from the newest
    checkpoint there. ``evaluate`` is called with (step, epoch), first before step 1; ``stopping`` is asked before each
    step.

    Raises:
        JobFailed: a loss or a gradient is NaN or infinite; the message names the records of the batch.
        Interrupted: ``stopping`` said so.
    """
    core, weights = plain_model(model), trained_weights(model)
    parameters = list(weights.values())
    device = parameters[0].device
    optimizer = make_optimizer(parameters, settings.learning_rate, device)
    run_digest = digest_run(examples, settings)
    plan = plan_steps([objective.tokens(e) for e in examples], dataset_digest(examples), settings)
    eval_at = evenly(plan.total_steps, settings.evaluations if evaluate else 0)
    save_at = evenly(plan.total_steps, settings.checkpoints)

    start, saved = 0, checkpoints(folder / "checkpoints")
    history = History(folder, saved[-1] if saved else None)
    if saved:
        position = load_checkpoint(saved[-1], weights, optimizer, run_digest)
        if history.digest != position.digest:
            raise damaged(saved[-1], f"its steps end with {history.digest[:12]}, saved was {position.digest[:12]}")
        start = position.step

    def save(step: int) -> None:
        position = Position(step, run_digest, history.digest, weights_digest(weights))
        save_checkpoint(folder / "checkpoints", weights, optimizer, position, history.files)

    def measure(step: int, epoch: float) -> None:
        if evaluate is None:
            return
        evaluated = ranks.of_main(evaluate(step, epoch))
        model.train()
        if not math.isfinite(evaluated.score):
            raise JobFailed(f"after step {step} the evaluation's score is {evaluated.score}: lower learning_rate")
        history.evaluated(evaluated)
        if history.best is evaluated:
            save_weights(weights, history.best_file)
        for observer in observers:
            observer.evaluated(evaluated)

    if eval_at and start == 0:
        measure(0, 0.0)
    model.train()
    done = start
    while done < plan.total_steps and not stops_early(history, settings):
        if ranks.any(stopping()):
            save(done)
            raise Interrupted
        began = time.perf_counter()
        seed_step(settings.seed, done)
        place = plan.at(done)
        batch = [examples[i] for i in place.records]
        weight = sum(objective.weight(e) for e in batch)

        shares = [
            cut(share, objective.tokens, settings.max_padded_tokens, packed=settings.packed)
            for share in ranks.shares(batch, objective.tokens)
        ]
        parts, found = shares[ranks.rank], list[ExampleLosses]()
        for part, counts in padded_turns(shares, ranks.rank):
            losses = objective.losses(core, part, device)
            (losses.losses_R.sum() / weight * counts).backward()  # type: ignore[no-untyped-call]
            if counts:
                found.append(ExampleLosses(losses.losses_R.detach(), losses.weights))
        ranks.sum_gradients(parameters)
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM).item()
        seen = [r for part, losses in zip(parts, found, strict=True) for r in by_record(objective, part, losses)]
        seen = [r for share in ranks.gather(seen) for r in share]
        loss = sum(ranks.gather(sum(losses.losses_R.sum().item() for losses in found))) / weight
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise JobFailed(_not_a_number(loss, gradient_norm, done, seen))
        learning_rate = learning_rate_at(done, plan.total_steps, settings)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done += 1
        due = done in save_at or done == plan.total_steps or weights_due(done, parameters)
        digest = step_digest(history.digest, done, seen, weights_digest(weights) if due else None)
        seconds = time.perf_counter() - began
        tokens = sum(objective.tokens(e) for e in batch)
        metrics = StepMetrics(
            step=done, epoch=place.epoch, loss=loss, learning_rate=learning_rate, gradient_norm=gradient_norm,
            tokens=tokens, tokens_per_s=tokens / seconds, seconds=seconds, memory_bytes=peak_memory_bytes(device),
            digest=digest,
        )  # fmt: skip
        history.stepped(metrics, StepLosses(done, place.epoch, seen))
        for observer in observers:
            observer.step(StepSeen(metrics, plan.total_steps, seen))
        if done in eval_at:
            measure(done, place.epoch)
        if done in save_at or stops_early(history, settings):
            save(done)
    best_step = keep_best(weights, history, done) if settings.keep == "best" else None
    return Trained(start, plan.total_steps, history.digest, best_step, stopped_early=done < plan.total_steps)


def plan_steps(lengths: Sequence[int], dataset_sha256: str, settings: LoopSettings) -> Plan:
    """Which records make up each step, and how many steps there are."""
    return Plan(
        lengths, dataset_sha256, seed=settings.seed, epochs=settings.epochs, batch_size=settings.batch_size,
        step_tokens=settings.step_tokens, max_steps=settings.max_steps,
    )  # fmt: skip


def by_record(objective: Objective[E], part: Sequence[E], losses: ExampleLosses) -> list[RecordLoss]:
    return [
        RecordLoss(objective.record_id(example), loss / weight, int(weight))
        for example, loss, weight in zip(part, losses.losses_R.tolist(), losses.weights, strict=True)
    ]


def stops_early(history: History, settings: LoopSettings) -> bool:
    return 0 < settings.early_stopping <= history.evals_since_best


def keep_best(weights: Mapping[str, torch.Tensor], history: History, last_step: int) -> int | None:
    """Put the best weights back. Returns their step, None if the last are the best or nothing was evaluated."""
    if history.best is None or history.best.step == last_step:
        return None
    load_weights(history.best_file, weights)
    return history.best.step


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held so far: on the GPU, or by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plain_model(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """The transformers model, with the adapter's layers in it if it has an adapter."""
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(core, PreTrainedModel):
        raise TypeError(f"expected a transformers model below the adapter, got {type(core).__name__}")
    return core


def make_optimizer(parameters: list[torch.nn.Parameter], learning_rate: float, device: torch.device) -> Optimizer:
    """AdamW without decay: the adapter starts at zero change. On CUDA its state is paged out when memory is short."""
    if device.type == "cuda":
        from bitsandbytes.optim.adamw import PagedAdamW32bit

        paged = PagedAdamW32bit(parameters, lr=learning_rate, betas=BETAS, weight_decay=0.0)  # type: ignore[no-untyped-call]
        return cast(Optimizer, paged)
    return AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True)


def learning_rate_at(step: int, total_steps: int, settings: LoopSettings) -> float:
    """Linear warmup over ``warmup_ratio`` of the steps, then linear to zero (better than cosine: arXiv 2502.15938)."""
    warmup = settings.warmup_ratio * total_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * (total_steps - step) / (total_steps - warmup)


def evenly(total: int, count: int) -> frozenset[int]:
    """``count`` points in 1..total, the last one ``total``; none for a count of 0."""
    return frozenset(max(1, round(total * i / count)) for i in range(1, count + 1))


def digest_run(examples: Sequence[object], settings: LoopSettings) -> str:
    """A hash of all that a run's numbers follow from, save the base model."""
    return hashlib.sha256(repr((dataset_digest(examples), settings)).encode()).hexdigest()


def _not_a_number(loss: float, gradient_norm: float, step: int, batch: Sequence[RecordLoss]) -> str:
    own = [r.record_id for r in batch if not math.isfinite(r.loss)]
    whose = f"not finite is the loss of {', '.join(own)}" if own else "each record's own loss is finite"
    return (
        f"step {step + 1}: loss {loss}, gradient norm {gradient_norm}; both must be finite. The batch was "
        f"{', '.join(r.record_id for r in batch)}; {whose}. Look at these records, or lower learning_rate"
    )
