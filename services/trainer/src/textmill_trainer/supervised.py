"""The objective of answers to questions: the mean negative log-likelihood of what is supervised, record by record."""

# ruff: noqa: N806 (tensor names carry their axes)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from textmill_trainer.batches import LayOut, collate, microbatches
from textmill_trainer.loss import supervised_losses
from textmill_trainer.objective import ExampleLosses
from textmill_trainer.prepare import Example


@dataclass(frozen=True)
class Supervised:
    """An ``Objective`` over ``Example``: also that of continued pretraining, where all tokens are supervised.

    ``lay_out`` makes a batch of a microbatch's records.
    """

    lay_out: LayOut = collate

    def tokens(self, example: Example) -> int:
        return len(example.token_ids)

    def weight(self, example: Example) -> float:
        """Its supervised tokens. The first token is predicted from nothing, so it never counts."""
        return sum(example.supervised[1:])

    def record_id(self, example: Example) -> str:
        return example.record_id

    def losses(self, model: PreTrainedModel, examples: Sequence[Example], device: torch.device) -> ExampleLosses:
        losses_R = supervised_losses(model, self.lay_out(examples).to(device))
        return ExampleLosses(losses_R, [self.weight(e) for e in examples])


@torch.no_grad()
def mean_loss(
    model: PreTrainedModel, examples: Sequence[Example], max_padded_tokens: int, device: torch.device
) -> float:
    """Mean negative log-likelihood per supervised token, in nats, with dropout off."""
    was_training = model.training
    model.train(False)
    total = sum(
        supervised_losses(model, collate(part).to(device)).sum().item()
        for part in microbatches(examples, max_padded_tokens)
    )
    model.train(was_training)
    return total / sum(sum(e.supervised[1:]) for e in examples)
