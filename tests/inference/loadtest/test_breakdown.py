"""Where the time went, and the server's series: from Prometheus text as vLLM and the gateway write it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from made_up import histogram_of, measured

from textmill_inference.loadtest import series
from textmill_inference.loadtest.breakdown import break_down
from textmill_inference.loadtest.series import Readings, Scraper, metrics_url, parse

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 5.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 4.0
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf",model_name="m"} 4.0
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} 4.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} 0.2
textmill_gateway_requests_in_flight{group="",model="m",route="chat"} 3.0
textmill_gateway_requests_in_flight{group="",model="other",route="chat"} 9.0
something_else{a="b"} 1.0
"""


def growth(count=10, queue=0.05, prefill=0.04, decode=0.15, e2e=0.25):
    """What vLLM's sums grew by, with these means in seconds."""
    found = {}
    for name, mean in (
        ("request_queue_time", queue), ("request_prefill_time", prefill), ("request_decode_time", decode),
        ("e2e_request_latency", e2e),
    ):  # fmt: skip
        found |= {f"vllm:{name}_seconds_count": count, f"vllm:{name}_seconds_sum": mean * count}
    return found


def parts(found):
    return {part.name: round(part.mean_ms, 1) for part in found.parts}


def test_with_the_engines_histograms_the_way_has_six_parts_that_add_up():
    found = break_down(measured(ttft_ms=[100.1] * 10, itl_ms=[20] * 10), {"engine": growth()})
    assert parts(found) == pytest.approx({
        "generator": 0.1, "network and gateway": 50.0, "server front end": 10.0, "queue": 50.0, "prefill": 40.0,
        "decode": 150.0,
    }, abs=0.3)  # fmt: skip
    assert found.total_ms == pytest.approx(300.1, abs=0.2)
    assert found.unexplained_ms == pytest.approx(0, abs=1e-6)


def test_with_the_gateways_clock_too_network_and_gateway_are_told_apart():
    gateway = {"textmill_gateway_request_seconds_count": 10, "textmill_gateway_request_seconds_sum": 2.8}
    found = break_down(measured(ttft_ms=[100.1] * 10, itl_ms=[20] * 10), {"engine": growth(), "gateway": gateway})
    assert parts(found)["network"] == pytest.approx(20, abs=0.2)
    assert parts(found)["gateway"] == pytest.approx(30, abs=0.2)
    alone = break_down(measured(ttft_ms=[100.1] * 10, itl_ms=[20] * 10), {"gateway": gateway})
    assert parts(alone) == pytest.approx({"generator": 0.1, "network": 20.0, "server": 280.0}, abs=0.3)


def test_the_servers_word_on_each_request_comes_before_its_histograms():
    times = {
        name: histogram_of([ms] * 10).latency()
        for name, ms in (("queue_time_ms", 30.0), ("time_to_first_token_ms", 60.0), ("generation_time_ms", 180.0))
    }
    found = break_down(measured(ttft_ms=[100] * 10, itl_ms=[20] * 10, server_times=times), {"engine": growth()})
    assert (parts(found)["queue"], parts(found)["prefill"], parts(found)["decode"]) == (30, 60, 180)
    assert parts(found)["network and gateway"] == pytest.approx(29.9, abs=0.3)


def test_a_silent_target_has_one_part_and_a_note():
    found = break_down(measured(), {})
    assert set(parts(found)) == {"generator", "server"}
    assert "tells nothing" in found.notes[0]
    assert break_down(measured(ttft_ms=(), itl_ms=()), {}) is None


def test_others_requests_at_the_server_are_noted():
    found = break_down(measured(ttft_ms=[100] * 10), {"engine": growth(count=500)})
    assert "answered 500 requests" in found.notes[0]


def test_only_what_is_shown_is_parsed():
    found = parse(PAGE)
    assert found["vllm:num_requests_running"] == 5
    assert found["vllm:request_queue_time_seconds_sum"] == 0.2
    assert found["textmill_gateway_requests_in_flight"] == 12
    assert parse(PAGE, "m")["textmill_gateway_requests_in_flight"] == 3
    assert "something_else" not in found
    assert not any("bucket" in name for name in found)


def test_growth_is_taken_between_the_readings_around_a_stage():
    readings = Readings("x", [(float(t), {"a_total": 10.0 * t}) for t in range(10)])
    assert readings.between(2.5, 5.5) == {"a_total": 40.0}
    assert readings.between(-5, 99) == {"a_total": 90.0}
    assert Readings("x", [(1.0, {})]).between(0, 2) is None


def test_series_are_bounded_and_counters_begin_at_nothing():
    many = [(float(t), {"vllm:num_preemptions_total": 7.0 + t}) for t in range(5_000)]
    (series,) = Readings("x", many).series(began=10.0)
    assert len(series.points) <= 600
    assert (series.points[0].at_s, series.points[0].value) == (-10, 0)


@pytest.fixture
def page():
    """A server whose /metrics can be changed; gives its URL and what it answers with."""
    answer = {"status": 200, "body": PAGE.encode()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(answer["status"])
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics", answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_scraper_reads_replicas_and_sums_them(page, waits, monkeypatch):
    monkeypatch.setattr(series, "_TIMEOUT_S", 60.0)  # so that a busy machine is no trouble to tell of
    url, _ = page
    scraper = Scraper("the engine", lambda: [url, url], every_s=0.01).start()
    waits(lambda: len(scraper.readings.readings) > 2, "three readings")
    scraper.stop()
    _, reading = scraper.readings.readings[0]
    assert (reading["vllm:num_requests_running"], reading["vllm:kv_cache_usage_perc"]) == (10, 0.5)
    assert scraper.readings.trouble == ""


@pytest.mark.parametrize(
    ("status", "body", "trouble"),
    [(404, b"", "answers 404"), (302, b"", "answers 302"), (200, b"x 1\n" * (2 << 20), "more than 4 MiB"),
     (200, b"up 1\n", "none of the metrics")],
)  # fmt: skip
def test_what_fails_is_a_note(page, waits, status, body, trouble):
    url, answer = page
    answer |= {"status": status, "body": body}
    scraper = Scraper("x", lambda: [url], every_s=0.01).start()
    waits(lambda: trouble in scraper.readings.trouble, "the trouble to be told")
    scraper.stop()


def test_a_target_without_metrics_ends_its_scraper(waits):
    scraper = Scraper("x", lambda: ["http://127.0.0.1:9/metrics"], every_s=0.0).start()
    waits(lambda: not scraper._thread.is_alive(), "the scraper to give up")
    assert scraper.readings.trouble == "no metrics from x: it can't be reached"
    scraper.stop()


def test_metrics_lie_at_the_root():
    assert metrics_url("https://host:8/api/v1") == "https://host:8/metrics"
