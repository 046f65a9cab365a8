from textmill_inference.loadtest.latency import Latencies


def sample(*values):
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return latencies


def test_percentiles_are_values_that_occurred():
    summary = sample(*range(100, 0, -1)).summary()
    assert (summary.samples, summary.mean, summary.p50, summary.p90) == (100, 50.5, 50, 90)


def test_one_sample_is_every_percentile():
    summary = sample(7.0).summary()
    assert (summary.p50, summary.p90, summary.p99) == (7.0, 7.0, None)


def test_no_sample_no_summary():
    assert sample().summary() is None


def test_a_p99_needs_662_samples():
    assert sample(*range(661)).summary().p99 is None
    assert sample(*range(662)).summary().p99 == 655


def test_a_planted_tail_shows_in_p99_and_not_in_p90():
    summary = sample(*[10.0] * 980, *[500.0] * 20).summary()
    assert (summary.p50, summary.p90, summary.p99) == (10.0, 10.0, 500.0)


def test_a_gap_that_brought_several_tokens_counts_for_each():
    latencies = Latencies()
    latencies.add(5.0, 3)
    assert latencies.summary().samples == 3
