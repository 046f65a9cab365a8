"""Intervals hold the truth about as often as they say, are exact where all was seen, and honest where little was."""

from random import Random

import pytest

from textmill_synth.forecast import Pace, Population, forecast_total


def corpus(seed: int, passages: int = 300) -> tuple[list[float], list[float]]:
    """Sizes spread log-normally; four calls a passage, of which some come out long."""
    draw = Random(seed)
    sizes = [draw.lognormvariate(6, 0.8) for _ in range(passages)]
    return sizes, [sum(120 + size / 4 + draw.lognormvariate(3, 0.6) for _ in range(4)) for size in sizes]


@pytest.mark.parametrize("tried", [5, 8, 30])
def test_nine_in_ten_intervals_hold_the_total(tried: int) -> None:
    held = 0
    for seed in range(200):
        sizes, figures = corpus(seed)
        places = Random(seed).sample(range(len(sizes)), tried)
        interval = forecast_total(
            [figures[p] for p in places], [sizes[p] for p in places], Population(len(sizes), sum(sizes))
        )
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= sum(figures) <= interval.high
    assert 160 <= held <= 196


def test_knowing_the_sizes_makes_the_interval_narrow() -> None:
    sizes, figures = corpus(1)
    known = forecast_total(figures[:8], sizes[:8], Population(300, sum(sizes)))
    unknown = forecast_total(figures[:8], [1.0] * 8, Population(300, 300.0))
    assert (known.high or 0) - (known.low or 0) < ((unknown.high or 0) - (unknown.low or 0)) / 5


def test_when_all_was_tried_the_forecast_is_what_was_seen() -> None:
    interval = forecast_total([3.0, 5.0], [1.0, 2.0], Population(2, 3.0))
    assert (interval.low, interval.expected, interval.high) == (8.0, 8.0, 8.0)


def test_of_one_passage_no_interval_is_made() -> None:
    interval = forecast_total([3.0], [1.0], Population(10, 10.0))
    assert (interval.expected, interval.low, interval.high) == (30.0, None, None)


def test_no_forecast_is_below_what_was_already_used() -> None:
    interval = forecast_total([0.0, 0.0, 90.0], [1.0, 1.0, 1.0], Population(4, 4.0))
    assert interval.low == 90.0


def test_time_is_between_more_at_once_and_no_more_than_in_the_pilot() -> None:
    two_at_once = Pace(calls=10, busy_s=20.0, wall_s=10.0)
    seconds = two_at_once.seconds(1_000, concurrency=8)
    assert seconds is not None
    assert (seconds.low, seconds.expected, seconds.high) == (250.0, 250.0, 1_000.0)
    queueing = Pace(calls=10, busy_s=200.0, wall_s=10.0).seconds(1_000, concurrency=8)
    assert queueing is not None
    assert queueing.low == queueing.high == 1_000.0
    assert Pace(0, 0.0, 1.0).seconds(10, 8) is None
