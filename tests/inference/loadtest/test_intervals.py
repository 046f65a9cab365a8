"""Intervals hold the truth at their share, counted over many draws."""

import math
import random

import pytest

from textmill_inference.loadtest.intervals import mean_interval, share_interval, t_975, z_of


@pytest.mark.parametrize(("share", "n"), [(0.01, 700), (0.1, 100), (0.5, 50), (0.001, 5000)])
def test_a_share_is_in_its_interval_nineteen_times_of_twenty(share, n):
    rng = random.Random(1)
    draws = 600
    held = 0
    for _ in range(draws):
        hits = sum(rng.random() < share for _ in range(n))
        low, high = share_interval(hits, n)
        held += low <= share <= high
    assert held / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_nothing_and_all_still_have_an_interval():
    assert share_interval(0, 0) == (0.0, 1.0)
    low, high = share_interval(0, 100)
    assert low == 0
    assert high == pytest.approx(0.037, abs=0.001)
    assert share_interval(100, 100) == pytest.approx((1 - high, 1.0))


def test_a_mean_of_few_values_is_in_its_interval():
    rng = random.Random(2)
    draws = 2_000
    for k in (2, 4, 12):
        held = 0
        for _ in range(draws):
            low, high = mean_interval([rng.gauss(5, 2) for _ in range(k)])
            held += low <= 5 <= high
        assert held / draws == pytest.approx(0.95, abs=0.02)
    assert mean_interval([1.0]) is None


def test_the_known_quantiles():
    assert z_of(0.95) == pytest.approx(1.95996, abs=1e-4)
    assert t_975(1) == 12.706
    assert t_975(30) == t_975(100) == 2.042
    assert t_975(1000) == pytest.approx(1.96, abs=0.001)
    with pytest.raises(ValueError, match="at least 1"):
        t_975(0)
