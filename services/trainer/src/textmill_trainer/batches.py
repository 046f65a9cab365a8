"""The order of training: which records make up which batch, as a function of seed and epoch alone.

Records of like length share a batch, so that little is padded; a batch too large for memory is cut into microbatches
of one optimizer step. Knows no model.
"""

# ruff: noqa: N806, N815 (tensor names carry their axes)

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from textmill_trainer.prepare import Example

_BATCHES_SORTED_TOGETHER = 8
"""Lengths are sorted within this many batches' worth of shuffled records: little padding, and still random."""


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens. Causal attention never looks right, so real tokens don't see the padding: no mask needed."""

    token_ids_BT: torch.Tensor
    supervised_BT: torch.Tensor
    """True where *this* token is predicted with loss."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.token_ids_BT.to(device), self.supervised_BT.to(device))


def batch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indexes of the records of each batch of an epoch. Every record is in exactly one."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    window = batch_size * _BATCHES_SORTED_TOGETHER
    order = [i for w in range(0, len(order), window) for i in sorted(order[w : w + window], key=lengths.__getitem__)]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def microbatches(examples: Sequence[Example], max_padded_tokens: int) -> list[list[Example]]:
    """Cut a batch so that each part, padded, has at most this many tokens; a longer record is a part of its own."""
    parts: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: len(e.token_ids)):
        # Sorted ascending, so the new one sets the padded length of the part it joins.
        if parts and (len(parts[-1]) + 1) * len(example.token_ids) <= max_padded_tokens:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def collate(examples: Sequence[Example]) -> Batch:
    """Pad to the longest, (B, T)."""
    length = max(len(e.token_ids) for e in examples)
    token_ids_BT = torch.zeros(len(examples), length, dtype=torch.long)
    supervised_BT = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        token_ids_BT[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        supervised_BT[row, : len(example.supervised)] = torch.tensor(example.supervised)
    return Batch(token_ids_BT, supervised_BT)
