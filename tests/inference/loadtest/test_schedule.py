from itertools import islice, pairwise, takewhile

import pytest

from textmill.contracts.load import Bursts, ClosedLoop, ConstantRate, Load, Poisson, Ramp, Trace, TraceEntry
from textmill_inference.loadtest.schedule import arrivals, mean_rate, part, share


def times(load: Load, until_s: float) -> list[float]:
    return [at_s for at_s, _ in takewhile(lambda arrival: arrival[0] < until_s, arrivals(load))]


def test_a_constant_rate_is_even() -> None:
    assert times(ConstantRate(rate_per_s=4), 1) == [0, 0.25, 0.5, 0.75]


def test_poisson_gaps_are_exponential_and_the_seed_decides() -> None:
    found = times(Poisson(rate_per_s=100, seed=3), 100)
    gaps = [after - before for before, after in pairwise(found)]
    assert len(found) == pytest.approx(10_000, rel=0.03)
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(
        0.3679, abs=0.02
    )  # 1/e are longer than the mean
    assert times(Poisson(rate_per_s=100, seed=3), 100) == found
    assert times(Poisson(rate_per_s=100, seed=4), 100) != found


def test_bursts_come_at_once_over_a_base() -> None:
    assert times(Bursts(size=2, period_s=1.0, rate_per_s=2), 1.9) == [0, 0, 0, 0.5, 1.0, 1.0, 1.0, 1.5]
    assert times(Bursts(size=3, period_s=1.0), 1.5) == [0, 0, 0, 1, 1, 1]


def test_a_ramp_goes_evenly_to_its_rate_and_stays_there() -> None:
    found = times(Ramp(from_per_s=0, to_per_s=100, seconds=10), 12)
    assert sum(at_s < 5 for at_s in found) == pytest.approx(125, abs=1)  # a quarter of the ramp's 500
    assert sum(at_s < 10 for at_s in found) == pytest.approx(500, abs=1)
    assert sum(at_s >= 10 for at_s in found) == pytest.approx(200, abs=1)
    assert found == sorted(found)


def test_a_ramp_may_fall_or_be_flat() -> None:
    falling = times(Ramp(from_per_s=100, to_per_s=10, seconds=1), 1)
    assert len(falling) == pytest.approx(55, abs=1)
    assert falling[1] == pytest.approx(0.01, rel=0.01)
    assert times(Ramp(from_per_s=10, to_per_s=10, seconds=1), 0.35) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_a_trace_is_played_at_its_speed() -> None:
    entries = [TraceEntry(at_s=at_s, prompt_tokens=number) for number, at_s in enumerate((0.0, 1.0, 4.0), 1)]
    found = list(arrivals(Trace(key="k", speed=2), entries))
    assert found == [(0.0, entries[0]), (0.5, entries[1]), (2.0, entries[2])]


@pytest.mark.parametrize("load", [ConstantRate(rate_per_s=97), Poisson(rate_per_s=97), Bursts(size=7, period_s=0.3)])
def test_workers_together_send_just_the_load(load: Load) -> None:
    whole = list(islice(arrivals(load), 300))
    parts = [list(islice(share(arrivals(load), worker, 3), 100)) for worker in range(3)]
    assert sorted(at for part_ in parts for at in part_) == sorted(whole)


@pytest.mark.parametrize(("whole", "workers"), [(10, 3), (2, 4), (0, 2), (9, 9)])
def test_parts_sum_up(whole: int, workers: int) -> None:
    parts = [part(whole, worker, workers) for worker in range(workers)]
    assert sum(parts) == whole
    assert max(parts) - min(parts) <= 1


def test_a_closed_loop_has_no_arrivals() -> None:
    with pytest.raises(ValueError, match="depends on the answers"):
        arrivals(ClosedLoop(concurrency=1))


def test_the_rate_that_is_planned_for_is_the_highest() -> None:
    assert mean_rate(Ramp(from_per_s=5, to_per_s=50, seconds=9), 9) == 50
    assert mean_rate(Bursts(size=30, period_s=10, rate_per_s=1), 60) == 4
