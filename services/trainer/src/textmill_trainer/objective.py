"""What a training step minimizes, as the loop knows it: the one place that a new objective has to fit."""

# ruff: noqa: N815 (tensor names carry their axes)

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

E_contra = TypeVar("E_contra", contravariant=True)


@dataclass(frozen=True)
class ExampleLosses:
    """Of R examples. ``losses_R`` sums each example's loss over what it is weighed by, in nats, with its graph."""

    losses_R: torch.Tensor
    weights: Sequence[float]
    """Supervised tokens of each example, or 1 for each preference pair: the loss of a step is the sum of losses over
    the sum of weights."""


class Objective(Protocol[E_contra]):
    def tokens(self, example: E_contra) -> int:
        """How many tokens the model reads for it: what batches are cut and packed by."""
        ...

    def weight(self, example: E_contra) -> float:
        """What it counts in the mean: its supervised tokens, or 1 for a preference pair."""
        ...

    def record_id(self, example: E_contra) -> str: ...

    def losses(self, model: PreTrainedModel, examples: Sequence[E_contra], device: torch.device) -> ExampleLosses:
        """One forward pass over a microbatch."""
        ...
