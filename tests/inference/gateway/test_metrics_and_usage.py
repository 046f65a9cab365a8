"""Numbers: the gateway's own histograms against the client library's, and tokens found in answers."""

import json

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from textmill_inference.gateway.metrics import Buckets, GatewayMetrics
from textmill_inference.gateway.usage import TokenCount, Usage, usage_of

BOUNDS = (0.1, 0.5, 1)
SEEN = (0.0, 0.1, 0.10001, 0.5, 0.7, 1.0, 1.5, 9.0)


def test_a_histogram_says_what_the_client_librarys_says():
    registry = CollectorRegistry()
    theirs, ours = Histogram("seconds", "x", buckets=BOUNDS, registry=registry), Buckets(BOUNDS)
    for seconds in SEEN:
        theirs.observe(seconds)
        ours.observe(seconds)
    buckets, total = ours.rendered()
    assert total == registry.get_sample_value("seconds_sum")
    for bound, count in buckets:
        assert count == registry.get_sample_value("seconds_bucket", {"le": bound})


def test_all_series_render_and_parse():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for group in ("a", "b"):
        series = metrics.of("chat", "small", group)
        series.statuses[200] += 3
        series.in_flight += 1
        series.ttft.observe(0.2)
        series.shadows["answered"] += 1
    assert metrics.of("chat", "small", "a") is metrics.of("chat", "small", "a")
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    names = {name.removeprefix("textmill_gateway_") for name in families}
    assert names == {
        "requests", "tokens", "retries", "broken_streams", "shadow_requests", "requests_in_flight", "request_seconds",
        "time_to_first_token_seconds", "inter_token_seconds",
    }  # fmt: skip
    labels = {"route": "chat", "model": "small", "group": "b"}
    assert registry.get_sample_value("textmill_gateway_requests_total", {**labels, "status": "200"}) == 3
    assert (
        registry.get_sample_value("textmill_gateway_time_to_first_token_seconds_bucket", {**labels, "le": "0.25"}) == 1
    )


USAGE = b'"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}'


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"choices":[],%b}' % USAGE, Usage(7, 5, True)),
        (b'{"choices":[], %b,"prompt_logprobs":[%b]}' % (USAGE, b"1," * 5_000 + b"1"), Usage(7, 5, True)),
        (json.dumps({"text": USAGE.decode()}).encode(), Usage(0, 0, False)),
        (b"{}", Usage(0, 0, False)),
        (b"", Usage(0, 0, False)),
    ],
)
def test_usage_of_a_plain_answer(answer, found):
    assert usage_of(answer) == found


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_usage_of_a_stream_however_it_is_cut(size):
    stream = b'data: {"x":1}\n\n' * 300 + b"data: {%b}\n\ndata: [DONE]\n\n" % USAGE
    count = TokenCount()
    for start in range(0, len(stream), size):
        count.take(stream[start : start + size])
    assert count.usage() == Usage(7, 5, True)


def test_a_stream_without_usage_counts_its_events():
    count = TokenCount()
    for _ in range(4):
        count.take(b'data: {"x":1}\n\n')
    count.take(b"data: [DONE]\n\n")
    assert count.usage() == Usage(0, 4, False)
