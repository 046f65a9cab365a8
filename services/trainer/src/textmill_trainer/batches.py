"""Cuts a step's examples into microbatches that fit into memory, and lays each out as tensors: padded, or packed.

Packed, the records of a microbatch follow each other in one row, and nothing is padded; what keeps them apart is in
``packing``. Knows no model.
"""

# ruff: noqa: N806, N815 (tensor names carry their axes)

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch

from textmill_trainer.order import batch_order as batch_order
from textmill_trainer.prepare import Example

E = TypeVar("E")


@dataclass(frozen=True)
class Segments:
    """Where in a packed row its R records are. ``bounds_R1`` holds R + 1 offsets, as int32."""

    positions_BT: torch.Tensor
    records_BT: torch.Tensor
    bounds_R1: torch.Tensor
    longest: int

    def to(self, device: torch.device) -> "Segments":
        positions_BT, records_BT, bounds_R1 = (
            t.to(device) for t in (self.positions_BT, self.records_BT, self.bounds_R1)
        )
        return Segments(positions_BT, records_BT, bounds_R1, self.longest)


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens. Causal attention never looks right, so real tokens don't see the padding: no mask needed.

    With ``segments`` a single row without padding, (1, T), that holds all records.
    """

    token_ids_BT: torch.Tensor
    supervised_BT: torch.Tensor
    """True where *this* token is predicted with loss."""
    segments: Segments | None = None

    def to(self, device: torch.device) -> "Batch":
        segments = self.segments.to(device) if self.segments else None
        return Batch(self.token_ids_BT.to(device), self.supervised_BT.to(device), segments)

    @property
    def records(self) -> int:
        return len(self.segments.bounds_R1) - 1 if self.segments else len(self.token_ids_BT)

    @property
    def longest(self) -> int:
        """Tokens of the longest record, padding included."""
        return self.segments.longest if self.segments else self.token_ids_BT.shape[1]

    def supervised_records(self) -> torch.Tensor:
        """For each of N supervised tokens the index of its record, (N,)."""
        shown_BT = self.supervised_BT[:, 1:]
        if self.segments:
            return self.segments.records_BT[:, 1:][shown_BT]
        return shown_BT.nonzero()[:, 0]


def microbatches(examples: Sequence[Example], max_padded_tokens: int) -> list[list[Example]]:
    """``cut`` by the lengths of examples."""
    return cut(examples, lambda e: len(e.token_ids), max_padded_tokens)


def cut(
    examples: Sequence[E], tokens: Callable[[E], int], max_padded_tokens: int, *, packed: bool = False
) -> list[list[E]]:
    """Cut a batch so that each part, padded or packed, has at most this many tokens; a longer record is a part of its
    own. Shortest first, so that like lengths share a part."""
    parts: list[list[E]] = []
    filled = 0
    for example in sorted(examples, key=tokens):
        length = tokens(example)
        # Sorted ascending, so the new one sets the padded length of the part it joins.
        size = filled + length if packed else (len(parts[-1]) + 1) * length if parts else length
        if parts and size <= max_padded_tokens:
            parts[-1].append(example)
        else:
            parts.append([example])
            size = length
        filled = size
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


def pack(examples: Sequence[Example]) -> Batch:
    """One row of all records, (1, T). The first token of each follows from nothing, so it is never supervised."""
    lengths = [len(e.token_ids) for e in examples]
    token_ids = [t for e in examples for t in e.token_ids]
    supervised = [s and i > 0 for e in examples for i, s in enumerate(e.supervised)]
    positions = [i for n in lengths for i in range(n)]
    lengths_R = torch.tensor(lengths)
    segments = Segments(
        positions_BT=torch.tensor([positions]),
        records_BT=torch.repeat_interleave(lengths_R)[None],
        bounds_R1=torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32),
        longest=max(lengths),
    )
    return Batch(torch.tensor([token_ids]), torch.tensor([supervised]), segments)
