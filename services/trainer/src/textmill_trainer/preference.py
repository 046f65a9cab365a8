"""The objective of preferences: of two answers the one that is wanted becomes likelier, measured from the base.

Direct preference optimization (Rafailov et al. 2023, eq. 7): -log sigmoid(beta * ((c - c_ref) - (r - r_ref))), where c
and r are the summed log-probabilities of the chosen and the rejected answer, and ref those under the base. Knows no
optimizer.
"""

# ruff: noqa: N806 (tensor names carry their axes)

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from textmill.contracts.preferences import PreferenceFigures, PreferenceReport
from textmill.contracts.runs import EvalMetrics
from textmill_trainer.batches import LayOut, collate, cut
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import supervised_losses
from textmill_trainer.objective import ExampleLosses
from textmill_trainer.observing import StepSeen
from textmill_trainer.pairs import PairExample
from textmill_trainer.workfolder import WorkFolder

LogProbs = Mapping[str, tuple[float, float]]
"""By pair: log-probability in nats of the chosen and of the rejected answer."""


class Preference:
    """An ``Objective`` over ``PairExample``. ``margins`` holds the last seen reward margin of each pair, in nats.

    ``lay_out`` makes a batch of a microbatch's answers.
    """

    def __init__(self, beta: float, references: LogProbs, lay_out: LayOut = collate) -> None:
        self._beta = beta
        self._references = references
        self._lay_out = lay_out
        self.margins: dict[str, float] = {}

    def tokens(self, example: PairExample) -> int:
        return _tokens(example)

    def weight(self, example: PairExample) -> float:
        return 1.0

    def record_id(self, example: PairExample) -> str:
        return example.record_id

    def losses(self, model: PreTrainedModel, examples: Sequence[PairExample], device: torch.device) -> ExampleLosses:
        chosen_R, rejected_R = log_probs(model, examples, device, self._lay_out)
        references = [self._references[e.record_id] for e in examples]
        base_R = torch.tensor([c - r for c, r in references], device=device)
        margins_R = self._beta * (chosen_R - rejected_R - base_R)
        self.margins.update(zip((e.record_id for e in examples), margins_R.tolist(), strict=True))
        return ExampleLosses(-logsigmoid(margins_R), [1.0] * len(examples))


def log_probs(
    model: PreTrainedModel,
    examples: Sequence[PairExample],
    device: torch.device,
    lay_out: LayOut = collate,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the chosen and of the rejected answers, (R,) each, with their graph: one forward pass over both."""
    both = [e.chosen for e in examples] + [e.rejected for e in examples]
    nats_2R = supervised_losses(model, lay_out(both).to(device))
    return -nats_2R[: len(examples)], -nats_2R[len(examples) :]


@torch.no_grad()
def reference_log_probs(
    model: PeftModel | PreTrainedModel,
    examples: Sequence[PairExample],
    max_padded_tokens: int,
    cache: Path,
    lay_out: LayOut = collate,
) -> LogProbs:
    """What the base gives the answers. Must be called before training: a fully trained model has no base any more.

    ``cache`` is read if it is of these pairs, else written: a run that is resumed elsewhere computes the same again.
    """
    digest = hashlib.sha256(repr(list(examples)).encode()).hexdigest()
    if cache.exists():
        found = json.loads(cache.read_bytes())
        if found["pairs"] == digest:
            return {pair_id: (chosen, rejected) for pair_id, (chosen, rejected) in found["log_probs"].items()}
    core = plain_model(model)
    was_training = core.training
    core.train(False)
    known: dict[str, tuple[float, float]] = {}
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        for part in cut(examples, _tokens, max_padded_tokens):
            chosen_R, rejected_R = log_probs(core, part, core.device, lay_out)
            pairs = zip(chosen_R.tolist(), rejected_R.tolist(), strict=True)
            known.update(zip((e.record_id for e in part), pairs, strict=True))
    core.train(was_training)
    work = cache.with_suffix(".part")
    work.write_text(json.dumps({"pairs": digest, "log_probs": known}))
    work.rename(cache)
    return known


class PreferenceWatch:
    """An ``Observer`` that writes the report ``preference``: mean reward margin, and how often the chosen one wins.

    Of training as a mean since the last evaluation; of the held-out pairs at each.
    """

    def __init__(self, objective: Preference, held_out: Sequence[PairExample], folder: WorkFolder) -> None:
        self._objective = objective
        self._held_out = [e.record_id for e in held_out]
        self._folder = folder
        self._seen: list[float] = []
        report = folder.report("preference")
        self._figures = (
            list(PreferenceReport.model_validate_json(report.read_bytes()).figures) if report.exists() else []
        )

    def step(self, seen: StepSeen) -> None:
        self._seen += [self._objective.margins[record.record_id] for record in seen.records]

    def evaluated(self, metrics: EvalMetrics) -> None:
        margins = self._objective.margins
        held_out = [margins[pair_id] for pair_id in self._held_out if pair_id in margins]
        kept = [f for f in self._figures if f.step < metrics.step]
        new = [_figures(metrics.step, s, m) for s, m in (("train", self._seen), ("eval", held_out)) if m]
        self._figures, self._seen = [*kept, *new], []
        self._folder.write(self._folder.report("preference"), PreferenceReport(figures=self._figures))


def _figures(step: int, split: str, margins: Sequence[float]) -> PreferenceFigures:
    won = sum(margin > 0 for margin in margins) / len(margins)
    return PreferenceFigures(step=step, split=split, reward_margin=fmean(margins), accuracy=won)


def _tokens(example: PairExample) -> int:
    return len(example.chosen.token_ids) + len(example.rejected.token_ids)
