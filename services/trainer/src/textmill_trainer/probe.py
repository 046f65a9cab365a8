"""One whole training step on a real batch, measured and undone: memory and time of the run before it starts.

Forward, backward and the optimizer run as in the loop; weights, gradients and random state are then as they were, bit
for bit, so that a probed run is the run that wasn't. Knows no job and no store.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from textmill.contracts.trainforecast import MeasuredStep, Setup
from textmill_trainer.loop import MAX_GRADIENT_NORM, make_optimizer, plain_model
from textmill_trainer.model import checkpoint_activations
from textmill_trainer.objective import Objective

E = TypeVar("E")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER = "5"
"""Linux, proc(5): sets the process's peak resident size back to what it is now."""
_NO_RATE = 1e-9
"""A step at this rate does all that a step does; what it changes is put back."""


class TooLarge(Exception):
    """The step doesn't fit into memory."""


@dataclass(frozen=True)
class Probing(Generic[E]):
    """What a probe needs of the run. ``parts_of`` cuts a batch as the loop does, for so many tokens a microbatch.

    ``formula_bytes`` says what a step of these parts should add; ``limit_bytes`` bounds what it may, where None leaves
    that to the device.
    """

    model: PeftModel | PreTrainedModel
    objective: Objective[E]
    device: torch.device
    parts_of: Callable[[Sequence[E], int], Sequence[Sequence[E]]]
    formula_bytes: Callable[[Sequence[Sequence[E]], Setup], int]
    limit_bytes: int | None = None


def measure(probing: Probing[E], batch: Sequence[E], setup: Setup, again: int = 0) -> MeasuredStep:
    """One step on ``batch``. Repeated ``again`` times, the quickest repetition is timed: it finds its memory where
    those before left it, and whatever else holds up a step only makes it longer.

    Raises:
        TooLarge: CUDA ran out of memory, or the step grew past the limit.
    """
    objective = probing.objective
    parts = probing.parts_of(batch, setup.max_padded_tokens)
    with untouched(probing.model, probing.device), high_water(probing.device) as grown:
        try:
            seconds = _timed_step(probing, parts)
            grown_bytes = grown()
            if again:
                seconds = min(_timed_step(probing, parts) for _ in range(again))
        except torch.OutOfMemoryError as exc:
            raise TooLarge(str(exc).partition("\n")[0]) from exc
    if probing.limit_bytes is not None and grown_bytes is not None and grown_bytes > probing.limit_bytes:
        raise TooLarge(f"the step took {grown_bytes} bytes, {probing.limit_bytes} are free")
    return MeasuredStep(
        tokens=sum(objective.tokens(e) for e in batch),
        padded_tokens=max(len(part) * max(objective.tokens(e) for e in part) for part in parts),
        seconds=seconds,
        grown_bytes=grown_bytes,
        formula_bytes=probing.formula_bytes(parts, setup),
        warm=again > 0,
    )


def measure_until_it_fits(
    probing: Probing[E], batch: Sequence[E], setups: Sequence[Setup]
) -> tuple[Setup, MeasuredStep] | None:
    """The first of ``setups`` that a step fits with; None if none does. Leaves gradient checkpointing as found so.

    ``setups`` differ in nothing that takes a new load of the model.
    """
    for setup in setups:
        checkpoint_activations(plain_model(probing.model), setup.gradient_checkpointing)
        try:
            return setup, measure(probing, batch, setup)
        except TooLarge:
            if probing.device.type == "cuda":
                torch.cuda.empty_cache()
    return None


@contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever is done inside, trained weights, gradients, mode and random state are as before afterwards.

    The copy lies in main memory, so that on CUDA it isn't counted. Frozen weights can't change.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().to("cpu", copy=True) for p in trained]
    modes = [(module, module.training) for module in model.modules()]
    # Of the other devices nothing is used, and forking their state costs seconds on a machine with many.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(trained, kept, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None
            for module, training in modes:
                module.training = training


@contextmanager
def high_water(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells how many bytes more than at the start were in use at once since; None if unknown.

    On CUDA what torch's allocator gave out; on the CPU the process's resident size, on Linux alone.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        at_start = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - at_start
        return
    give_back_freed()
    resets = _reset_high_water()
    before = _status_bytes("VmRSS")
    yield lambda: max(0, _status_bytes("VmHWM") - before) if resets else None


def give_back_freed() -> None:
    """Have glibc return freed memory to the kernel: it keeps hundreds of MB, which would hide what a step takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _timed_step(probing: Probing[E], parts: Sequence[Sequence[E]]) -> float:
    began = time.perf_counter()
    _step(probing, parts)
    if probing.device.type == "cuda":
        torch.cuda.synchronize(probing.device)
    return time.perf_counter() - began


def _step(probing: Probing[E], parts: Sequence[Sequence[E]]) -> None:
    model, objective = probing.model, probing.objective
    core = plain_model(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(trained, _NO_RATE, probing.device)
    weight = sum(objective.weight(e) for part in parts for e in part)
    for part in parts:
        found = objective.losses(core, part, probing.device)
        (found.losses_R.sum() / weight).backward()  # type: ignore[no-untyped-call]
        found.losses_R.tolist()
    torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _reset_high_water() -> bool:
    try:
        descriptor = os.open(_CLEAR_REFS, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, _RESET_HIGH_WATER.encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0
