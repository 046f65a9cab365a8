"""Cuts a step's examples into microbatches that fit into memory, and lays each out as tensors: padded, or packed.

Packed, the records of a microbatch follow each other in one row, and nothing is padded; what keeps them apart is in
``packing``. Knows no model.
"""

# ruff: noqa: N803, N806, N815 (tensor names carry their axes)

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import torch

from textmill_trainer.order import batch_order as batch_order
from textmill_trainer.prepare import Example

E = TypeVar("E")


@dataclass(frozen=True)
class Places:
    """A layout with each record by itself: the packed row's token in each of S places, and a place of each token."""

    tokens_S: torch.Tensor
    homes_T: torch.Tensor


@dataclass(frozen=True)
class Rows:
    """Where in a packed row of T tokens its R records are.

    ``paths_S`` holds each record's tokens as indexes into the row, one record after the other, and ``bounds_R1`` where
    each begins in it, R + 1 offsets as int32. A token is in several records' paths if they share it; ``first_S`` says
    where it is met first. Tokens are numbered in that order. ``positions_BT`` counts from a record's beginning.
    """

    positions_BT: torch.Tensor
    paths_S: torch.Tensor
    first_S: torch.Tensor
    bounds_R1: torch.Tensor
    longest: int

    @cached_property
    def joined(self) -> Places:
        """One record behind the other."""
        return Places(self.paths_S, self.first_S.nonzero()[:, 0])

    @cached_property
    def padded(self) -> Places:
        """R rows of the longest record's length. Padding repeats a record's first token, which no real one sees."""
        starts_R, lengths_R = self.bounds_R1[:-1].long(), self.bounds_R1.diff().long()
        offsets_L = torch.arange(self.longest, device=self.bounds_R1.device)
        real_RL = offsets_L < lengths_R[:, None]
        tokens_RL = self.paths_S[starts_R[:, None] + offsets_L * real_RL]
        return Places(tokens_RL.flatten(), real_RL.flatten().nonzero()[:, 0][self.first_S])

    def to(self, device: torch.device) -> "Rows":
        return replace(self, **_moved(self, device))


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens, (B, T). Causal attention never looks right, so real tokens don't see the padding: no mask
    needed. With ``rows`` a single row without padding, (1, T), that holds all records.

    Tokens that predict nothing that counts, as the last one, aren't in it. Of N supervised tokens ``targets_N`` holds
    the ids, ``places_N`` where in the flat (B * T) the token before each is, and ``records_N`` whose it is.
    """

    token_ids_BT: torch.Tensor
    targets_N: torch.Tensor
    places_N: torch.Tensor
    records_N: torch.Tensor
    records: int
    rows: Rows | None = None

    def to(self, device: torch.device) -> "Batch":
        return replace(self, **_moved(self, device))

    @property
    def longest(self) -> int:
        """Tokens of the longest record, padding included."""
        return self.rows.longest if self.rows else self.token_ids_BT.shape[1]


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


LayOut = Callable[[Sequence[Example]], Batch]
"""``collate``, or ``pack``: which of them is up to ``packing_choice``."""


def collate(examples: Sequence[Example]) -> Batch:
    """Pad to the longest, (B, T)."""
    inputs = [given(e) for e in examples]
    length = max(map(len, inputs))
    token_ids_BT = torch.zeros(len(examples), length, dtype=torch.long)
    for row, ids in enumerate(inputs):
        token_ids_BT[row, : len(ids)] = torch.tensor(ids)
    return _batch(examples, token_ids_BT, [range(row * length, (row + 1) * length) for row in range(len(examples))])


def pack(examples: Sequence[Example], *, share: bool = False) -> Batch:
    """One row of all records, (1, T). With ``share`` a beginning that records have in common is in it once, as in a
    trie: what a token comes to follows from those before it, so it is the same for all."""
    indexes: dict[tuple[int, int], int] = {}
    positions, first, paths = list[int](), list[bool](), list[list[int]]()
    for number, example in enumerate(examples):
        at, path = -1 if share else -1 - number, list[int]()
        for position, token in enumerate(given(example)):
            at = indexes.setdefault((at, token), len(indexes))
            first.append(at == len(positions))
            if first[-1]:
                positions.append(position)
            path.append(at)
        paths.append(path)
    rows = Rows(
        positions_BT=torch.tensor([positions]),
        paths_S=torch.tensor([at for path in paths for at in path]),
        first_S=torch.tensor(first),
        bounds_R1=torch.tensor(list(accumulate(map(len, paths), initial=0)), dtype=torch.int32),
        longest=max(map(len, paths)),
    )
    return _batch(examples, torch.tensor([[token for _, token in indexes]]), paths, rows)


def given(example: Example) -> tuple[int, ...]:
    """What the model is given: the tokens before the last supervised one. It is never empty."""
    last = max((at for at, counts in enumerate(example.supervised) if counts), default=0)
    return example.token_ids[: max(last, 1)]


def _moved(of: Rows | Batch, device: torch.device) -> dict[str, Any]:
    parts = {field.name: getattr(of, field.name) for field in fields(of)}
    return {name: part.to(device) for name, part in parts.items() if isinstance(part, torch.Tensor | Rows)}


def _batch(
    examples: Sequence[Example], token_ids_BT: torch.Tensor, paths: Sequence[Sequence[int]], rows: Rows | None = None
) -> Batch:
    """``paths`` holds the place of each token of each record."""
    counted = [
        (example.token_ids[at], path[at - 1], record)
        for record, (example, path) in enumerate(zip(examples, paths, strict=True))
        for at, counts in enumerate(example.supervised)
        if counts and at
    ]
    targets_N, places_N, records_N = torch.tensor(counted, dtype=torch.long).view(-1, 3).unbind(1)
    return Batch(token_ids_BT, targets_N, places_N, records_N, len(examples), rows)
