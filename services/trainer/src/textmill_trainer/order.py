"""Which records make up which step: a function of the dataset's hash, the seed and the epoch, and of nothing else.

A step takes ``batch_size`` records, or as many as fit into a budget of tokens. Knows no model and no torch.
"""

import math
import random
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

_BATCHES_SORTED_TOGETHER = 8
"""Lengths are sorted within this many batches' worth of shuffled records: little padding, and still random."""
MIN_BUDGET_STEPS = 64
"""A budget of tokens that leaves fewer steps than this in the whole run is not used: AdamW needs some dozens of steps,
warmup included, and fuller steps of a small dataset are too few."""


@dataclass(frozen=True)
class Place:
    """Where a step is: ``records`` are indexes, ``epoch`` counts epochs done after it."""

    records: Sequence[int]
    epoch: float


class Plan:
    """All steps of a run. ``step_tokens`` is None where records are counted, by choice or by ``MIN_BUDGET_STEPS``."""

    def __init__(
        self,
        lengths: Sequence[int],
        dataset_sha256: str,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        step_tokens: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        self._lengths = lengths
        self._dataset_sha256 = dataset_sha256
        self._seed = seed
        self._batch_size = batch_size
        self._limit = max_steps or sys.maxsize
        self.step_tokens = step_tokens
        self._begins = self._epoch_begins(epochs)
        if step_tokens is not None and self.total_steps < MIN_BUDGET_STEPS:
            self.step_tokens = None
            self._begins = self._epoch_begins(epochs)
        self._epoch = lru_cache(maxsize=1)(self._batches)

    @property
    def total_steps(self) -> int:
        return min(self._begins[-1], self._limit)

    def at(self, step: int) -> Place:
        """The step after ``step`` steps."""
        epoch = bisect_right(self._begins, step) - 1
        begin, end = self._begins[epoch], self._begins[epoch + 1]
        return Place(self._epoch(epoch)[step - begin], epoch + (step + 1 - begin) / (end - begin))

    def _epoch_begins(self, epochs: int) -> list[int]:
        """The first step of each epoch, and the end of the last."""
        if self.step_tokens is None:
            steps = math.ceil(len(self._lengths) / self._batch_size)
            return [steps * epoch for epoch in range(epochs + 1)]
        return list(accumulate((len(self._batches(epoch)) for epoch in range(epochs)), initial=0))

    def _batches(self, epoch: int) -> list[list[int]]:
        return batch_order(
            self._lengths, self._batch_size, self._seed, epoch,
            step_tokens=self.step_tokens, dataset_sha256=self._dataset_sha256,
        )  # fmt: skip


def batch_order(
    lengths: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    step_tokens: int | None = None,
    dataset_sha256: str = "",
) -> list[list[int]]:
    """Indexes of the records of each batch of an epoch. Every record is in exactly one."""
    rng = random.Random(f"{dataset_sha256}/{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    records_a_batch = math.ceil(step_tokens * len(lengths) / sum(lengths)) if step_tokens else batch_size
    window = records_a_batch * _BATCHES_SORTED_TOGETHER
    order = [i for w in range(0, len(order), window) for i in sorted(order[w : w + window], key=lengths.__getitem__)]
    batches = _filled(order, lengths, step_tokens) if step_tokens else _counted(order, batch_size)
    rng.shuffle(batches)
    return batches


def _counted(order: Sequence[int], batch_size: int) -> list[list[int]]:
    return [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def _filled(order: Sequence[int], lengths: Sequence[int], step_tokens: int) -> list[list[int]]:
    """Up to ``step_tokens`` in each batch; a longer record is a batch of its own."""
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if lengths[index] > room:
            batches.append([])
            room = step_tokens
        batches[-1].append(index)
        room -= lengths[index]
    return batches
