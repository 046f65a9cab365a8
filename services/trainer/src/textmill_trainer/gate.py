"""The merge gate: what is published behaves as what was trained, or nothing is published.

Each way to merge is measured against the live model at supervised tokens of real examples; the nearest is written,
loaded from disk again as any engine would, and measured once more. Knows no store, and not how weights are merged.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel

from textmill.contracts.gates import Closeness, MergeCandidate, MergedInto, MergeReport
from textmill.contracts.runs import MergeCheck
from textmill.contracts.training import Method
from textmill.errors import JobFailed
from textmill_trainer.batches import Batch, collate, microbatches
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import CHUNK_POSITIONS, supervised_logits
from textmill_trainer.merge import merge, merged_in_memory, save_full
from textmill_trainer.prepare import Example

COMPARED_RECORDS = 64
SCREENED_RECORDS = 16
"""The first few of them say which candidate is nearer, which is a matter of a factor of ten or more; what is published
is measured on all. Twice all and three times the few is what the gate costs in forward passes."""
COMPARED_TOKENS = 2_048
"""The trained model's logits at so many supervised tokens are kept: 200 MB in bf16 at 49k entries, 620 MB at 152k. One
token in 2,048 is 0.05 % of agreement."""
NOTHING_LEARNT_KL = 1e-6
"""A trained model nearer than this to its base is the base: bf16 rounding alone moves a model ten times as far."""
_MERGED_INTO: dict[MergedInto, str] = {
    "nf4": "merged into the dequantized NF4 weights",
    "16bit": "merged into the base's 16-bit weights",
    "saved": "saved in bf16; all weights were trained, so there is nothing to merge",
}


def pass_gate(
    model: PeftModel | PreTrainedModel,
    base: Path,
    target: Path,
    examples: Sequence[Example],
    *,
    method: Method,
    max_kl: float,
    max_padded_tokens: int,
) -> tuple[MergeReport, PreTrainedModel]:
    """Publish into ``target`` the merged model that is nearest to the live one. Returns it as loaded from there.

    Raises:
        JobFailed: training changed nothing, the merged model is further than ``max_kl`` from the trained one or no
            nearer to it than the base is, or one of them gives NaN.
    """
    began = time.perf_counter()
    live = model if isinstance(model, PreTrainedModel) else plain_model(model)
    few, rest = (
        _batches(part, max_padded_tokens, live.device)
        for part in (examples[:SCREENED_RECORDS], examples[SCREENED_RECORDS:])
    )
    trained = Trained(live, [*few, *rest])
    with _untrained(model, base) as core:
        before = trained.closeness(core, len(few))
    _refuse_nothing_learnt(before)
    candidates = list(_candidates(model, base, method, trained, len(few)))
    into = min(candidates, key=lambda c: c.mean_kl).into if candidates else "saved"
    if isinstance(model, PeftModel):
        merge(model, base, target, into)
    else:
        save_full(model, base, target)
    loaded = load_published(target, live.device)
    published = MergeCandidate(into=into, **trained.closeness(loaded).model_dump())
    _refuse_another_model(published, before, max_kl)
    report = MergeReport(
        method=method,
        records=trained.records,
        tokens=trained.tokens,
        max_kl=max_kl,
        trained_nll=trained.nll,
        base=before,
        candidates=candidates,
        published=published,
        why=_why(candidates, into),
        seconds=time.perf_counter() - began,
    )
    return report, loaded


class Trained:
    """What the live model says at the supervised tokens of ``batches``: the measure of all others.

    Raises ``JobFailed`` if that isn't a number.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self._batches = batches
        # As the head gave them: its bf16 is bf16 here, too.
        self._logits = [logits_NV.to(model.dtype) for logits_NV in _logits(model, batches)]
        self.records = sum(batch.records for batch in batches)
        self.tokens = sum(len(logits_NV) for logits_NV in self._logits)
        self.nll = sum(_nll_sum(lo, ba) for lo, ba in zip(self._logits, batches, strict=True)) / self.tokens
        if not math.isfinite(self.nll):
            raise JobFailed(
                f"the trained model's loss is {self.nll} on its own records: it can't be published. Its weights hold "
                f"numbers that are none; lower learning_rate, and look at the loss"
            )

    @torch.no_grad()
    def closeness(self, model: PreTrainedModel, batches: int | None = None) -> Closeness:
        """On the first few batches, or on all: KL(trained || ``model``) in nats a token, agreement on the likeliest
        token, and the model's own NLL."""
        kl, agreed, nll, tokens = 0.0, 0, 0.0, 0
        compared = self._batches[:batches]
        for trained_NV, other_NV, batch in zip(self._logits, _logits(model, compared), compared, strict=False):
            tokens += len(trained_NV)
            nll += _nll_sum(other_NV, batch)
            for ours_NV, theirs_NV in zip(
                torch.split(trained_NV, CHUNK_POSITIONS), torch.split(other_NV, CHUNK_POSITIONS), strict=True
            ):
                kl += kl_divergence_sum(ours_NV.float(), theirs_NV.float())
                agreed += int((ours_NV.argmax(-1) == theirs_NV.argmax(-1)).sum())
        return Closeness(mean_kl=kl / tokens, top1_agreement=agreed / tokens, nll=nll / tokens)


def short_form(report: MergeReport) -> MergeCheck:
    """For the model's manifest and card."""
    published = report.published
    return MergeCheck(
        mean_kl=published.mean_kl,
        top1_agreement=published.top1_agreement,
        tokens=report.tokens,
        into=published.into,
        nll=published.nll,
        trained_nll=report.trained_nll,
        kl_to_base=report.base.mean_kl,
    )


def kl_divergence_sum(ours_NV: torch.Tensor, theirs_NV: torch.Tensor) -> float:
    """Sum over N of KL(ours || theirs) in nats, from logits; accumulated in fp64, as its terms nearly cancel."""
    terms_NV = kl_div(log_softmax(theirs_NV, -1), log_softmax(ours_NV, -1), reduction="none", log_target=True)
    return terms_NV.sum(dtype=torch.float64).item()


def compared_examples(eval_examples: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """Of both in turn, spread evenly over each, up to ``COMPARED_RECORDS`` and ``COMPARED_TOKENS``
    supervised tokens; at least one."""
    chosen: list[Example] = []
    tokens = 0
    for example in _in_turn(_spread(eval_examples), _spread(examples)):
        supervised = sum(example.supervised[1:])
        if len(chosen) == COMPARED_RECORDS:
            break
        if chosen and tokens + supervised > COMPARED_TOKENS:
            continue
        chosen.append(example)
        tokens += supervised
    return chosen


def load_published(folder: Path, device: torch.device) -> PreTrainedModel:
    """The model as an engine loads it: bf16."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device})
    return model


def _candidates(
    model: PeftModel | PreTrainedModel, base: Path, method: Method, trained: Trained, batches: int
) -> Iterator[MergeCandidate]:
    if not isinstance(model, PeftModel):
        return
    ways: tuple[MergedInto, ...] = ("nf4", "16bit") if method == "qlora" else ("16bit",)
    for into in ways:
        with merged_in_memory(model, base, into) as core:
            yield MergeCandidate(into=into, **trained.closeness(core, batches).model_dump())


@contextmanager
def _untrained(model: PeftModel | PreTrainedModel, base: Path) -> Iterator[PreTrainedModel]:
    """The base as it was trained beside; where all weights were trained, as it lies on disk."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield plain_model(model)
        return
    yield load_published(base, model.device)
    gc.collect()


def _batches(examples: Sequence[Example], max_padded_tokens: int, device: torch.device) -> list[Batch]:
    return [collate(part).to(device) for part in microbatches(examples, max_padded_tokens)]


@torch.no_grad()
def _logits(model: PreTrainedModel, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
    """Of each batch the logits (N, V) at its supervised tokens, dropout off."""
    # Out of training DoRA keeps its norms from one pass to the next, whatever becomes of the weights meanwhile.
    model.train(True)
    model.train(False)
    for batch in batches:
        logits_NV = supervised_logits(model, batch)
        yield logits_NV


def _nll_sum(logits_NV: torch.Tensor, batch: Batch) -> float:
    chunks = zip(torch.split(logits_NV, CHUNK_POSITIONS), torch.split(batch.targets_N, CHUNK_POSITIONS), strict=True)
    return sum(cross_entropy(lo.float(), ta, reduction="sum").item() for lo, ta in chunks)


def _spread(examples: Sequence[Example]) -> list[Example]:
    """The same examples so ordered that any first few of them lie evenly over the whole (golden-ratio steps)."""
    golden = (math.sqrt(5) - 1) / 2
    return [examples[i] for i in sorted(range(len(examples)), key=lambda i: i * golden % 1)]


def _in_turn(one: Sequence[Example], other: Sequence[Example]) -> Iterator[Example]:
    for index in range(max(len(one), len(other))):
        yield from one[index : index + 1]
        yield from other[index : index + 1]


def _refuse_nothing_learnt(base: Closeness) -> None:
    if base.mean_kl < NOTHING_LEARNT_KL:
        raise JobFailed(
            f"training changed nothing: the trained model and its base differ by a mean KL of {base.mean_kl:.1e} "
            f"nats a token (less than {NOTHING_LEARNT_KL:.0e} counts as nothing) and agree on "
            f"{base.top1_agreement:.2%} of tokens. Raise learning_rate or epochs, and look at the loss"
        )


def _refuse_another_model(published: MergeCandidate, base: Closeness, max_kl: float) -> None:
    if not math.isfinite(published.mean_kl) or not math.isfinite(published.nll):
        raise JobFailed(
            f"the merged model gives NaN or infinite numbers (mean KL {published.mean_kl}, loss {published.nll}), "
            f"the trained one does not: its weights don't fit into bf16. Lower learning_rate or alpha"
        )
    if published.mean_kl > max_kl:
        raise JobFailed(
            f"the merged model is not the trained one: mean KL {published.mean_kl:.1e} nats a token, merge_max_kl is "
            f"{max_kl:.1e}; they agree on {published.top1_agreement:.2%} of tokens. Raise merge_max_kl only if you "
            f"want to publish another model than was trained and evaluated"
        )
    if published.mean_kl >= base.mean_kl:
        raise JobFailed(
            f"the merged model is no nearer to the trained one (mean KL {published.mean_kl:.1e} nats a token) than the "
            f"base is ({base.mean_kl:.1e}): what was learnt is lost in rounding to bf16. Raise learning_rate or epochs"
        )


def _why(candidates: Sequence[MergeCandidate], into: MergedInto) -> str:
    others = [c for c in candidates if c.into != into]
    if not others:
        return _MERGED_INTO[into]
    kl = next(c.mean_kl for c in candidates if c.into == into)
    rest = ", ".join(f"{c.mean_kl:.1e} if {_MERGED_INTO[c.into]}" for c in others)
    return f"{_MERGED_INTO[into]}: mean KL to the trained model {kl:.1e} nats a token, against {rest}"
