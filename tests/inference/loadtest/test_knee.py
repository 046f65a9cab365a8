"""The knee of curves whose knee is known."""

import random

import pytest

from textmill_inference.loadtest.knee import find_knee

DOUBLING = [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("knee", [3, 10, 24, 50])
def test_two_straight_lines_meet_at_the_knee(knee):
    found = find_knee(DOUBLING, [40 * min(n, knee) for n in DOUBLING])
    assert found.load == pytest.approx(knee, rel=0.01)
    assert found.throughput == pytest.approx(40 * knee, rel=0.01)
    assert found.per_load == pytest.approx(40, rel=0.01)
    assert found.relative_error < 0.01


def test_noise_moves_it_little():
    rng = random.Random(4)
    loads = [n for n in DOUBLING for _ in range(3)]
    for _ in range(50):
        found = find_knee(loads, [40 * min(n, 20) * rng.uniform(0.95, 1.05) for n in loads])
        assert found.load == pytest.approx(20, rel=0.1)


def test_the_saturation_point_of_a_queue_by_operational_analysis():
    """A closed network of one queue (D = 10 ms) and a delay (190 ms): N* = 20, by mean value analysis."""
    demand, delay = 0.010, 0.190
    queue, throughput = 0.0, {}
    for n in range(1, 257):
        residence = demand * (1 + queue)
        throughput[n] = n / (residence + delay)
        queue = throughput[n] * residence
    loads = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert find_knee(loads, [throughput[n] for n in loads]).load == pytest.approx(20, rel=0.1)


def test_a_sweep_that_goes_on_past_the_knee_finds_the_same():
    short = find_knee([1, 2, 4, 8, 16, 32, 64], [min(n, 12) for n in [1, 2, 4, 8, 16, 32, 64]])
    loads = [1, 2, 4, 8, 16, 32, 64, 128, 1024, 4096]
    assert find_knee(loads, [min(n, 12) for n in loads]).load == pytest.approx(short.load)


def test_no_knee_is_claimed_where_none_was_reached():
    assert find_knee(DOUBLING, [40 * n for n in DOUBLING]) is None
    assert find_knee(DOUBLING, [40 * n**0.9 for n in DOUBLING]) is None
    assert find_knee([1, 2], [1, 1]) is None
    assert find_knee([1, 1, 1, 2], [1, 1, 1, 1]) is None
    assert find_knee(DOUBLING, [0] * len(DOUBLING)) is None


def test_throughput_that_falls_beyond_the_knee_still_has_one():
    found = find_knee(DOUBLING, [40, 80, 160, 320, 400, 380, 350, 330])
    assert 7 < found.load < 13
