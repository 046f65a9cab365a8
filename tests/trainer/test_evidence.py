"""Learning rate and rank by evidence: near what others trained well with, and monotone where it has to be."""

from typing import Any

import pytest

from textmill.contracts.training import TrainOptions
from textmill_trainer.evidence import KNOWN, LEAST_RANK, MOST_RANK, Facts, Known, needed_rank, resolve_options
from textmill_trainer.evidence import best_rate as rate_of
from textmill_trainer.geometry import Geometry, of_config

AUTO = TrainOptions(learning_rate="auto", rank="auto")


def model(hidden: int, family: str = "llama", layers: int = 2) -> Geometry:
    return of_config(
        {
            "model_type": family, "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
            "num_attention_heads": 8, "vocab_size": 1_000,
        }
    )  # fmt: skip


def rate(hidden: int, steps: int = 1_000, family: str = "llama", rank: int = 16, **options: Any) -> float:
    return rate_of(TrainOptions(**options), model(hidden, family), steps, rank)[0]


@pytest.mark.parametrize("known", KNOWN, ids=lambda k: k.what)
def test_the_formula_is_within_a_factor_of_three_and_a_half_of_what_others_used(known: Known) -> None:
    alpha = 16 if "alpha 16" in known.what else 32
    found = rate(known.hidden, method=known.method, objective=known.objective, alpha=alpha)
    assert known.learning_rate / 3.5 < found < known.learning_rate * 3.5


def test_the_demo_gets_the_rate_it_was_tuned_to_by_hand() -> None:
    assert rate(576, steps=48) == pytest.approx(2e-3, rel=0.05)
    assert rate(576, steps=1_000) == pytest.approx(1.3e-3, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "qwen3", "glm4"])
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_larger_models_get_lower_rates(family: str, method: Any) -> None:
    rates = [rate(hidden, family=family, method=method) for hidden in (512, 1_024, 2_048, 4_096, 8_192)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_a_family_nobody_fitted_gets_the_lower_of_both_fits() -> None:
    for hidden in (512, 8_192):
        assert rate(hidden, family="glm4") == min(rate(hidden), rate(hidden, family="qwen3"))


def test_ratios_that_the_sources_state() -> None:
    assert rate(4_096) == pytest.approx(10 * rate(4_096, method="full"), rel=0.05)
    assert rate(4_096, steps=90) == pytest.approx(1.5 * rate(4_096), rel=0.05)
    assert rate(4_096, alpha=16) == pytest.approx(2 * rate(4_096, alpha=32), rel=0.05)
    assert rate(4_096, rank=8) == rate(4_096, rank=128)
    assert rate(4_096, rank=64, adapter="rslora") == pytest.approx(rate(4_096, rank=64) / 8, rel=0.05)
    assert rate(4_096, objective="dpo") < rate(4_096) / 10


def test_rank_grows_with_the_tokens_to_learn() -> None:
    """A weight of the adapter for each, in powers of two, within bounds."""
    geometry = model(512)
    a_rank = geometry.adapter_parameters(1)
    ranks = [needed_rank(Facts(geometry, 100, n * a_rank)).rank for n in (0, 1, 16, 17, 100, 511, 10_000)]
    assert ranks == [LEAST_RANK, 16, 16, 32, 128, MOST_RANK, MOST_RANK]


def test_what_the_owner_set_stays_and_what_he_left_open_is_explained() -> None:
    facts = Facts(model(576), 48, 9_000)
    found = resolve_options(AUTO, facts)
    assert (found.rank, [e.option for e in found.evidence]) == (16, ["rank", "learning_rate"])
    assert "9,000 tokens to learn" in found.evidence[0].why
    assert "ten times the full rate" in found.evidence[1].why
    assert all(e.source for e in found.evidence)
    own = resolve_options(TrainOptions(learning_rate=1.5e-3, rank=4), facts)
    assert (own.learning_rate, own.rank, own.evidence, own.advice) == (1.5e-3, 4, (), ())


def test_a_rank_too_small_and_a_rate_far_off_are_advised_against() -> None:
    facts = Facts(model(576), 1_000, 3_000_000)
    small = resolve_options(TrainOptions(learning_rate=1e-3, rank=2), facts)
    assert len(small.advice) == 1
    assert "rank 2 gives the adapter" in small.advice[0]
    assert f"rank {needed_rank(facts).rank} has" in small.advice[0]
    for far in (1e-6, 0.1):
        advice = resolve_options(TrainOptions(learning_rate=far, rank=512), facts).advice
        assert len(advice) == 1
        assert "try learning_rate: sweep" in advice[0]
    full = TrainOptions(method="full", learning_rate="auto", rank="auto")
    assert [e.option for e in resolve_options(full, facts).evidence] == ["learning_rate"]
