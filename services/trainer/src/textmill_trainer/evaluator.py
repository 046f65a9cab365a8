"""What the loop calls to evaluate: losses on fixed samples, what is recited word for word, how far from the base.

Everything is measured the same way, with dropout off, and draws no random number: a run with more evaluations ends
with the weights of one with fewer. Knows no steps between evaluations and judges nothing.
"""

# ruff: noqa: N806 (tensor names carry their axes)

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from textmill.contracts.datasets import Record
from textmill.contracts.runs import EvalMetrics
from textmill_trainer.batches import collate, cut
from textmill_trainer.canaries import RecordSamples, choose, give_prefix, within_budget
from textmill_trainer.forgetting import Forgetting
from textmill_trainer.loss import supervised_logits
from textmill_trainer.objective import Objective
from textmill_trainer.prepare import Example, encode_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

E = TypeVar("E")
PADDED_TOKENS = 2_048
"""Of one forward pass. Logits are at supervised positions only: 400 MB of fp32 at worst, at 49k entries."""


@dataclass(frozen=True)
class Measured:
    """One example: its loss summed over ``weight`` supervised tokens (or one pair), in nats.

    ``recited`` says that each supervised token is the likeliest one after those before it, which is the same as
    that greedy decoding gives the answer word for word; ``right`` counts such tokens. None where the objective has no
    such thing.
    """

    loss: float
    weight: float
    right: int | None = None

    @property
    def recited(self) -> bool | None:
        return None if self.right is None else self.right == self.weight


Measure = Callable[[Sequence[E]], list[Measured]]


@dataclass(frozen=True)
class Samples(Generic[E]):
    """What is measured each time. ``reworded`` and ``prefixed`` ask for answers of ``trained`` in other words."""

    trained: Sequence[E]
    evaluated: Sequence[E] = ()
    reworded: Sequence[E] = ()
    prefixed: Sequence[E] = ()
    from_heldout: bool = False


class Evaluator(Generic[E]):
    """Called by the loop with (step, epoch). ``measure`` gives the figures of examples in their order."""

    def __init__(
        self,
        core: PreTrainedModel,
        measure: Measure[E],
        samples: Samples[E],
        document_id: Callable[[E], str],
        forgetting: Forgetting | None = None,
    ) -> None:
        self._core = core
        self._measure = measure
        self._samples = samples
        self._document_id = document_id
        self._forgetting = forgetting

    @property
    def sampled(self) -> dict[str, int]:
        """How many examples each figure rests on."""
        samples = self._samples
        return {
            "trained": len(samples.trained),
            "reworded": len(samples.reworded),
            "prefixed": len(samples.prefixed),
            "evaluated": len(samples.evaluated),
        }

    def __call__(self, step: int, epoch: float) -> EvalMetrics:
        began = time.perf_counter()
        samples, forgetting = self._samples, self._forgetting
        with evaluating(self._core):
            trained, evaluated = self._measure(samples.trained), self._measure(samples.evaluated)
            reworded, prefixed = self._measure(samples.reworded), self._measure(samples.prefixed)
            kl = forgetting.mean_kl() if forgetting else None
        return EvalMetrics(
            step=step,
            epoch=epoch,
            eval_loss=mean(evaluated),
            train_loss=mean(trained),
            heldout_loss=mean(reworded) if samples.from_heldout else None,
            probe_loss=None if samples.from_heldout else mean(reworded),
            loss_by_document=self._by_document(evaluated),
            exact_recall=recall(trained),
            reworded_recall=recall(reworded),
            prefix_recall=recall(prefixed),
            exact_accuracy=accuracy(trained),
            reworded_accuracy=accuracy(reworded),
            kl_to_base=kl,
            forgetting_budget=forgetting.budget if forgetting else None,
            seconds=time.perf_counter() - began,
        )

    def _by_document(self, evaluated: Sequence[Measured]) -> dict[str, float]:
        groups: dict[str, list[Measured]] = defaultdict(list)
        for example, measured in zip(self._samples.evaluated, evaluated, strict=True):
            groups[self._document_id(example)].append(measured)
        return {document: loss for document, group in groups.items() if (loss := mean(group)) is not None}


def mean(measured: Sequence[Measured]) -> float | None:
    """Loss per unit of weight; None of nothing."""
    weight = sum(m.weight for m in measured)
    return sum(m.loss for m in measured) / weight if weight else None


def recall(measured: Sequence[Measured]) -> float | None:
    """The share that is recited; None of nothing."""
    recited = [m.recited for m in measured if m.recited is not None]
    return sum(recited) / len(recited) if recited else None


def accuracy(measured: Sequence[Measured]) -> float | None:
    """The share of tokens that are right; None of nothing."""
    known = [m for m in measured if m.right is not None]
    return sum(m.right or 0 for m in known) / sum(m.weight for m in known) if known else None


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off, no graphs; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


# -- supervised --------------------------------------------------------------------------------------------------------


def supervised_evaluator(
    core: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerFast",
    records: tuple[Sequence[Record], Sequence[Record], Sequence[Record]],
    max_tokens: int,
    forgetting: Forgetting | None = None,
) -> "Evaluator[Example]":
    """For answers to questions. ``records`` are the splits train, eval and heldout."""
    chosen = choose(*records)
    samples = encode_samples(chosen, tokenizer, max_tokens)
    return Evaluator(core, partial(recite, core), samples, lambda e: e.document_id, forgetting)


def encode_samples(chosen: RecordSamples, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> Samples[Example]:
    """Records that can't be encoded are left out: in other words a question may be too long."""

    def encode(records: Sequence[Record]) -> list[Example]:
        return within_budget(encode_records(records, tokenizer, max_tokens).examples)

    return Samples(
        trained=encode(chosen.trained),
        evaluated=encode(chosen.evaluated),
        reworded=encode(chosen.reworded),
        prefixed=give_prefix(encode(chosen.prefixed)),
        from_heldout=chosen.from_heldout,
    )


def recite(core: PreTrainedModel, examples: Sequence[Example]) -> list[Measured]:
    """Loss and recital of each example, in one pass."""
    found: dict[int, Measured] = {}
    for part in cut(range(len(examples)), lambda i: len(examples[i].token_ids), PADDED_TOKENS):
        batch = collate([examples[i] for i in part]).to(core.device)
        logits_NV = supervised_logits(core, batch)
        losses_N = cross_entropy(logits_NV, batch.targets_N, reduction="none")
        likeliest_N = logits_NV.argmax(-1) == batch.targets_N
        sizes = [sum(examples[i].supervised[1:]) for i in part]
        rows = zip(part, torch.split(losses_N, sizes), torch.split(likeliest_N, sizes), strict=True)
        found.update({i: Measured(loss.sum().item(), len(loss), int(top.sum())) for i, loss, top in rows})
    return [found[i] for i in range(len(examples))]


# -- any objective -----------------------------------------------------------------------------------------------------


def objective_evaluator(
    core: PreTrainedModel,
    objective: Objective[E],
    train: Sequence[E],
    evaluation: Sequence[E],
    document_id: Callable[[E], str],
    sampled: int,
    forgetting: Forgetting | None = None,
) -> "Evaluator[E]":
    """For what has no questions to put in other words: the objective's own loss on ``sampled`` examples of each split.

    They are taken at even distances.
    """
    samples = Samples(trained=evenly_taken(train, sampled), evaluated=evenly_taken(evaluation, sampled))
    return Evaluator(core, partial(by_objective, core, objective), samples, document_id, forgetting)


def evenly_taken(examples: Sequence[E], count: int) -> list[E]:
    count = min(count, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def by_objective(core: PreTrainedModel, objective: Objective[E], examples: Sequence[E]) -> list[Measured]:
    found: dict[int, Measured] = {}
    for part in cut(range(len(examples)), lambda i: objective.tokens(examples[i]), PADDED_TOKENS):
        losses = objective.losses(core, [examples[i] for i in part], core.device)
        rows = zip(part, losses.losses_R.tolist(), losses.weights, strict=True)
        found.update({i: Measured(loss, weight) for i, loss, weight in rows})
    return [found[i] for i in range(len(examples))]
