"""A share is met exactly, rule by rule; nothing is logged that no rule covers."""

import pytest

from textmill.contracts.traffic import LogRule, TrafficPolicy
from textmill_inference.flywheel.sampling import Sampler


def sampler(*rules, seed=7):
    return Sampler(TrafficPolicy(rules=tuple(LogRule.model_validate(rule) for rule in rules)), seed)


def test_nothing_is_logged_by_default():
    assert not any(Sampler(TrafficPolicy()).wants("m", "g") for _ in range(1_000))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.125, 0.5, 0.999, 1.0])
def test_a_share_is_exact_in_every_thousand(share):
    chosen = sampler({"share": share})
    taken = [chosen.wants("m", "g") for _ in range(5_000)]
    assert [sum(taken[i : i + 1_000]) for i in range(0, 5_000, 1_000)] == [round(share * 1_000)] * 5


def test_traffic_with_a_rhythm_of_its_own_is_not_sampled_in_step():
    chosen = sampler({"share": 0.5})
    taken = [chosen.wants("m", "g") for _ in range(10_000)]
    first_halves = sum(wanted for number, wanted in enumerate(taken) if number % 1_000 < 500)
    assert 2_200 < first_halves < 2_800


def test_the_first_rule_that_covers_decides():
    chosen = sampler({"group": "secret", "share": 0}, {"model": "small"}, {"group": "desk"})
    asked = [("small", "desk"), ("small", "secret"), ("large", "desk"), ("large", "other")]
    assert [chosen.wants(*a) for a in asked] == [True, False, True, False]


def test_models_of_one_rule_share_its_thousand():
    chosen = sampler({"share": 0.25})
    assert sum(chosen.wants(f"m{n % 3}", "g") for n in range(3_000)) == 750


def test_too_fine_a_share_is_refused():
    with pytest.raises(ValueError, match="thousandth"):
        LogRule(share=0.0005)
