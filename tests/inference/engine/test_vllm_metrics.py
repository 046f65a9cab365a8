"""vLLM's metrics pass through, from real HTTP servers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from textmill_inference.engine.vllm_metrics import VllmMetrics

PAGE = """\
# HELP vllm:num_requests_waiting Number of requests waiting.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="MODEL"} 3.0
# HELP vllm:num_preemptions_total Preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{model_name="MODEL"} 7.0
# HELP vllm:time_to_first_token_seconds TTFT.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.5",model_name="MODEL"} 1.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="MODEL"} 2.0
vllm:time_to_first_token_seconds_count{model_name="MODEL"} 2.0
vllm:time_to_first_token_seconds_sum{model_name="MODEL"} 1.5
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 41.0
"""


@pytest.fixture
def engines() -> Iterator[list[str]]:
    """Two servers, with a model each."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(name)) for name in ("base", "tuned")]
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(model: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PAGE.replace("MODEL", model).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def rendered(*urls: str) -> list[str]:
    registry = CollectorRegistry(auto_describe=True)
    VllmMetrics(lambda: urls, timeout_s=60.0, registry=registry)
    return generate_latest(registry).decode().splitlines()


def test_each_family_is_there_once_with_the_samples_of_all_engines(engines: list[str]) -> None:
    lines = rendered(*engines)
    assert lines.count("# TYPE vllm:num_requests_waiting gauge") == 1
    for model in ("base", "tuned"):
        assert f'vllm:num_requests_waiting{{model_name="{model}"}} 3.0' in lines
        assert f'vllm:num_preemptions_total{{model_name="{model}"}} 7.0' in lines
        assert f'vllm:time_to_first_token_seconds_bucket{{le="0.5",model_name="{model}"}} 1.0' in lines


def test_the_process_metrics_are_our_own(engines: list[str]) -> None:
    assert not any(line.startswith("process_") for line in rendered(*engines))


def test_an_engine_that_is_gone_costs_nothing_else(engines: list[str]) -> None:
    assert 'vllm:num_requests_waiting{model_name="base"} 3.0' in rendered(engines[0], "http://127.0.0.1:1")
    assert rendered("http://127.0.0.1:1") == []


def test_engines_elsewhere_are_left_to_prometheus(engines: list[str]) -> None:
    assert rendered("http://vllm.example.com:8000") == []
