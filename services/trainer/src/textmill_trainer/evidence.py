"""Learning rate and rank where the owner left them to us, each with what it rests on. No torch.

Learning rate: Thinking Machines' fit over Llama and Qwen models, ``5e-5 * m * (2000 / hidden) ** p`` with m = 10 for
LoRA and 1 for full fine-tuning; LoRA's best rate is about ten times the other's and doesn't depend on the rank when
the adapter is scaled by alpha / rank with alpha 32 ("LoRA Without Regret", 2025; ``hyperparam_utils`` of
tinker-cookbook).
Rank: LoRA keeps up with full fine-tuning as long as the adapter has no fewer weights than there are tokens to learn
(the same authors' "LoRA Primer"); a weight holds about two bits (2404.05405), a token of text brings about one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textmill.contracts.trainforecast import OptionEvidence
from textmill.contracts.training import Method, Objective, TrainOptions
from textmill_trainer.geometry import Geometry

BLOG = "LoRA Without Regret (Schulman et al., Thinking Machines, 2025)"
_BASE_RATE, _BASE_HIDDEN = 5e-5, 2_000
_LORA_FACTOR = 10.0
_EXPONENTS = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}
"""Fitted by the source. For other families the lower of both rates is taken: too low trains slowly, too high not at
all."""
_SHORT_STEPS, _SHORT_FACTOR = 100, 1.5
"""In runs of about 100 steps or fewer LoRA's best rate was nearer 15 times the full one: B starts at zero."""
_REFERENCE_ALPHA = 32
_DPO_RATE, _DPO_HIDDEN = 5e-7, 4_096
"""Full DPO of a 7B model in Zephyr's recipe (2310.16944); its QLoRA recipe has ten times that."""
LEAST_RANK, MOST_RANK = 16, 512


@dataclass(frozen=True)
class Known:
    """A rate that somebody trained well with."""

    learning_rate: float
    method: Method
    objective: Objective
    hidden: int
    what: str
    source: str


KNOWN: Sequence[Known] = (
    Known(1e-3, "qlora", "supervised", 576, "SmolLM2-135M on 24 facts, 71 % of held-out ones exact", "textmill's demo"),
    Known(2e-3, "qlora", "supervised", 576, "SmolLM2-135M on eight hexagrams", "examples/zhouyi/recipe.yaml"),
    Known(2e-4, "qlora", "supervised", 4_096, "LLaMA 7B and 13B, alpha 16", "QLoRA (2305.14314), table 9"),
    Known(1e-4, "qlora", "supervised", 8_192, "LLaMA 33B and 65B, alpha 16", "QLoRA (2305.14314), table 9"),
    Known(5e-6, "qlora", "dpo", 4_096, "Zephyr 7B", "alignment-handbook, zephyr-7b-beta/dpo/config_qlora.yaml"),
    Known(5e-7, "full", "dpo", 4_096, "Zephyr 7B", "alignment-handbook, zephyr-7b-beta/dpo/config_full.yaml"),
    Known(3e-5, "full", "pretrain", 1_600, "GPT-2 XL on Shakespeare", "nanoGPT, config/finetune_shakespeare.py"),
)
"""What the formula is held against."""


@dataclass(frozen=True)
class Facts:
    """Of a run. ``learnable_tokens`` are those of one epoch that have a loss: a second reading brings nothing new."""

    geometry: Geometry
    steps: int
    learnable_tokens: int


@dataclass(frozen=True)
class Resolved:
    """``learning_rate`` is where a sweep starts from, if the owner wants one."""

    learning_rate: float
    rank: int
    evidence: tuple[OptionEvidence, ...]
    advice: tuple[str, ...]


def resolve_options(options: TrainOptions, facts: Facts) -> Resolved:
    """Numbers for what is "auto" or "sweep", evidence for each, and advice on what the owner chose against it."""
    evidence: list[OptionEvidence] = []
    rank, needed = options.rank, needed_rank(facts)
    if isinstance(rank, str):
        rank = needed.rank
        if options.method != "full":
            evidence.append(OptionEvidence(option="rank", value=rank, why=needed.why, source=BLOG))
    rate, why = best_rate(options, facts.geometry, facts.steps, rank)
    if isinstance(options.learning_rate, str):
        evidence.append(OptionEvidence(option="learning_rate", value=rate, why=why, source=BLOG))
    else:
        rate = options.learning_rate
    return Resolved(rate, rank, tuple(evidence), tuple(_advice(options, facts, rate, rank, needed)))


def best_rate(options: TrainOptions, geometry: Geometry, steps: int, rank: int) -> tuple[float, str]:
    """The rate by formula, rounded to two digits, and how it comes about."""
    full = options.method == "full"
    factor = 1.0 if full else _LORA_FACTOR
    words = "full fine-tuning" if full else "ten times the full rate for LoRA"
    if options.objective == "dpo":
        rate = _DPO_RATE * factor * _shrink(geometry, _DPO_HIDDEN)
        words += ", from Zephyr's DPO"
    else:
        rate = _BASE_RATE * factor * _shrink(geometry, _BASE_HIDDEN)
    words += f", at {geometry.hidden} hidden dimensions of {geometry.family}"
    if not full and options.objective != "dpo" and steps <= _SHORT_STEPS:
        rate *= _SHORT_FACTOR
        words += f", half as much again for {steps} steps"
    alpha = options.alpha * (math.sqrt(rank) if options.adapter == "rslora" else 1.0)
    if not full and alpha != _REFERENCE_ALPHA:
        rate *= _REFERENCE_ALPHA / alpha
        words += f", times {_REFERENCE_ALPHA}/{alpha:g} for the scale of the adapter"
    return float(f"{min(rate, 0.5):.2g}"), words


def _shrink(geometry: Geometry, reference: int) -> float:
    """How much the rate differs from a model of ``reference`` hidden dimensions."""
    exponent = _EXPONENTS.get(geometry.family)
    choices = [exponent] if exponent is not None else list(_EXPONENTS.values())
    return min(math.pow(reference / geometry.hidden, p) for p in choices)


@dataclass(frozen=True)
class NeededRank:
    rank: int
    why: str


def needed_rank(facts: Facts) -> NeededRank:
    """The least power of two from ``LEAST_RANK`` whose adapter has a weight for each token to learn."""
    a_rank = max(1, facts.geometry.adapter_parameters(1))
    rank = LEAST_RANK
    while rank < MOST_RANK and rank * a_rank < facts.learnable_tokens:
        rank *= 2
    why = f"{rank * a_rank:,} adapter weights for {facts.learnable_tokens:,} tokens to learn"
    return NeededRank(rank, why)


def _advice(options: TrainOptions, facts: Facts, rate: float, rank: int, needed: NeededRank) -> list[str]:
    advice = []
    weights = facts.geometry.adapter_parameters(rank)
    if options.method != "full" and weights < facts.learnable_tokens:
        advice.append(
            f"rank {rank} gives the adapter {weights:,} weights for {facts.learnable_tokens:,} tokens to learn, so it "
            f"will learn slower than full fine-tuning; rank {needed.rank} has {needed.why.split(' for ')[0]}"
        )
    best, why = best_rate(options, facts.geometry, facts.steps, rank)
    if not best / 10 <= rate <= best * 5:
        advice.append(
            f"learning_rate {rate:g} is {'below a tenth' if rate < best else 'more than five times'} of {best:g}, "
            f"which others found good ({why}; {BLOG}): try learning_rate: sweep"
        )
    return advice
