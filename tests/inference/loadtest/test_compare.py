"""Comparisons hold the true difference at their share, although stages vary and the machine drifts."""

import math
import random

import pytest
from made_up import measured

from textmill_inference.loadtest import compare
from textmill_inference.loadtest.compare import compare_pairs, compare_runs


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 250)


def stage(rng, median_ms, stage_spread, drift=1.0, n=300):
    """Latencies of a stage that has its own luck. On a coarse grid, so that a histogram has few buckets."""
    scale = median_ms * drift * math.exp(rng.gauss(0, stage_spread))
    return measured(
        ttft_ms=[10 * round(scale * math.exp(rng.gauss(0, 0.3)) / 10) + 1 for _ in range(n)], itl_ms=[20.0] * 10,
        seconds=20 * math.exp(rng.gauss(0, 0.02)),
    )  # fmt: skip


def row(found, name, percent):
    return next(r for r in found.rows if (r.name, r.percent) == (name, percent))


@pytest.mark.parametrize(("spread", "drift"), [(0.0, 0.0), (0.1, 0.0), (0.05, 0.05)])
def test_the_true_difference_is_in_the_interval_at_the_claimed_share(spread, drift):
    rng = random.Random(8)
    runs = 50
    held = {50.0: 0, 90.0: 0}
    for _ in range(runs):
        pairs, slowness = [], 1.0
        for turn in range(4):
            one = stage(rng, 300, spread, slowness)
            slowness *= 1 + drift
            other = stage(rng, 300, spread, slowness)
            slowness *= 1 + drift
            pairs.append((one, other) if turn % 2 == 0 else (other, one))
        found = compare_pairs(pairs)
        for percent in held:
            difference = row(found, "time to first token", percent)
            held[percent] += difference.low <= 0 <= difference.high
    for share in held.values():
        assert share / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_a_real_difference_is_found_and_named():
    rng = random.Random(9)
    pairs = [(stage(rng, 300, 0.02), stage(rng, 200, 0.02)) for _ in range(4)]
    difference = row(compare_pairs(pairs), "time to first token", 50.0)
    assert difference.finding == "b lower"
    assert difference.low < difference.difference < difference.high < 0
    assert difference.difference == pytest.approx(-100, abs=15)


def test_no_percentile_is_compared_that_the_samples_do_not_support():
    rng = random.Random(1)
    found = compare_pairs([(stage(rng, 300, 0, n=40), stage(rng, 300, 0, n=40)) for _ in range(2)])
    assert {r.percent for r in found.rows if r.name == "time to first token"} == {50.0, 90.0}


def test_pairs_that_the_generator_spoiled_are_left_out_and_told():
    good, bad = measured(), measured(valid=False)
    found = compare_pairs([(good, good), (good, bad), (good, good)])
    assert found.pairs == 2
    assert found.notes == ("1 of 3 pairs were left out: the generator spoiled a stage",)
    assert compare_pairs([(bad, good)]) is None
    assert "one pair tells nothing" in compare_pairs([(good, good)]).notes[0]


def test_two_runs_are_compared_where_they_have_a_load_in_common():
    a = [measured(4), measured(8), measured(16)]
    b = [measured(8, ttft_ms=[150] * 700), measured(16, valid=False), measured(32)]
    (found,) = compare_runs(a, b)
    assert (found.load, found.interleaved, found.pairs) == (8, False, 0)
    assert row(found, "time to first token", 50.0).difference == pytest.approx(50, rel=0.01)
    assert "different times" in found.notes[0]
    assert compare_runs(a[:1], b) == []
