import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill_inference.loadtest.histogram import HIGHEST_US, Histogram, interval_ranks, samples_needed, value_of

# Made with HdrHistogram_py 0.10.8: HdrHistogram(1, 3600_000_000, 3) and the values below.
BY_HDRHISTOGRAM = "HISTFAAAADR4nJNpmSzMwMAgwgABzFCaEURcm7yEwf4DVIDpMCPXZjkWjp0eF/ib3fgW72FkAgDnrgpi"
ITS_VALUES = [(1, 1), (100, 5), (2047, 2), (2048, 3), (2049, 1), (50_123, 1000), (1_000_001, 7), (3_599_999_999, 1)]


def of(*values: int) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.integers(0, HIGHEST_US))
def test_a_value_is_off_by_half_a_thousandth_at_most(value: int) -> None:
    (index,) = of(value).counts
    assert abs(value_of(index) - value) <= max(0.5, value * 0.0005)


def test_what_is_negative_or_too_long_is_counted_at_the_end_of_the_scale() -> None:
    histogram = of(-5, HIGHEST_US * 3)
    assert histogram.samples == 2
    assert histogram.percentile(1) == 0
    assert histogram.percentile(100) == pytest.approx(HIGHEST_US, rel=0.001)


@given(st.lists(st.integers(0, 10**7)), st.lists(st.integers(0, 10**7)))
def test_merging_is_as_good_as_recording_in_one(some: list[int], others: list[int]) -> None:
    merged = of(*some)
    merged.merge(of(*others))
    assert merged.counts == of(*some, *others).counts


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, HIGHEST_US), st.integers(1, 10**6)), max_size=50))
def test_what_was_encoded_is_decoded(values: list[tuple[int, int]]) -> None:
    histogram = Histogram()
    for value, times in values:
        histogram.record(value, times)
    assert Histogram.decode(histogram.encode()).counts == histogram.counts


def test_it_reads_and_writes_what_hdrhistogram_does() -> None:
    histogram = Histogram()
    for value, times in ITS_VALUES:
        histogram.record(value, times)
    assert Histogram.decode(BY_HDRHISTOGRAM).counts == histogram.counts
    assert histogram.encode() == BY_HDRHISTOGRAM


@pytest.mark.parametrize("text", ["", "AAAA", "HISTFAAAAAA=", BY_HDRHISTOGRAM[:40], "HISTFAAAAAh4nAMAAAAAAQ=="])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HdrHistogram"):
        Histogram.decode(text)


def test_percentiles_are_those_of_the_sorted_sample() -> None:
    values = [random.Random(1).randint(0, 2_000) for _ in range(999)]
    ordered = sorted(values)
    histogram = of(*values)
    for percent in (1, 50, 90, 99, 100):
        assert histogram.percentile(percent) == ordered[-(-percent * 999 // 100) - 1]


def test_mlperfs_bound_holds_for_p99_and_its_like_for_the_others() -> None:
    assert [samples_needed(percent) for percent in (50.0, 90.0, 99.0, 99.9)] == [11, 64, 662, 6636]
    assert samples_needed(1.0) == samples_needed(99.0)


def test_a_percentile_is_claimed_from_enough_samples_only() -> None:
    assert of(*range(661)).quantile(99.0) is None
    latency = of(*range(662)).latency()
    assert latency is not None
    claimed = latency.at(99.0)
    assert claimed is not None
    assert claimed.low_ms <= claimed.ms <= claimed.high_ms
    assert latency.at(99.9) is None


def test_nothing_is_said_of_nothing() -> None:
    assert Histogram().latency() is None
    assert Histogram().percentile(50) is None


@pytest.mark.parametrize(("percent", "samples"), [(50.0, 40), (90.0, 200), (99.0, 700), (50.0, 20_000)])
def test_the_interval_holds_the_true_percentile_19_times_in_20(percent: float, samples: int) -> None:
    draws = random.Random(7)
    held = []
    for _ in range(300):
        ordered = sorted(draws.random() for _ in range(min(samples, 2_000)))
        low, high = interval_ranks(percent, len(ordered))
        held.append(ordered[low - 1] <= percent / 100 <= ordered[high - 1])
    assert mean(held) >= 0.93  # 0.95 less three deviations of 300 tries


def test_a_standstill_counts_by_its_length() -> None:
    histogram = Histogram()
    for _ in range(90):
        histogram.record_standstill(100, 10_000)
    histogram.record_standstill(100_000, 10_000)
    assert histogram.samples == 100
    assert histogram.percentile(95) == pytest.approx(50_000, rel=0.01)
