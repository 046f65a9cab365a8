"""Spans as a collector receives them: through HTTP, a job, Kafka's headers; and nothing at all while tracing is off."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid

import pytest
from fastapi.testclient import TestClient
from tests.collector import Collector
from tests.ports import any_free

from textmill import tracing
from textmill.bus import KafkaBus, MemoryBus
from textmill.contracts.base import new_id
from textmill.contracts.jobs import CorpusJob, Output, SynthJob
from textmill.errors import BadRequest, JobFailed
from textmill.http import create_app, submission_router
from textmill.jobs import Jobs, parse_job
from textmill.store import MemoryStore
from textmill.telemetry import JsonFormatter
from textmill.tracing import TraceRequests
from textmill.worker import Pace, Worker

CLIENTS = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = CLIENTS.split("-")[1]


def test_without_a_collectors_address_nothing_is_traced() -> None:
    tracing.configure("test")
    with tracing.span("a", parent=CLIENTS) as current:
        tracing.note({"b": 1})
        tracing.fail("c")
        tracing.event("d")
        assert (current, tracing.traceparent(), tracing.header_line(), tracing.trace_id()) == (None, None, b"", "")
    assert not tracing.enabled()


def test_while_it_is_off_opentelemetry_is_not_even_imported() -> None:
    code = "import sys, textmill.service; print(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/own"}, "http://c:4318/own"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ""),
    ],
)
def test_opentelemetrys_own_variables_say_where_spans_go(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.traces_url() == url


def test_another_protocol_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(BadRequest, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc.*HTTP port .usually 4318"):
        tracing.configure("test")


def test_a_span_knows_its_parent_and_its_error(collector: Collector) -> None:
    with tracing.span("outer", "client", CLIENTS, {"a": 1}), tracing.span("inner"):
        tracing.event("half way")
        tracing.fail("llm_timeout")
    tracing.stop()
    outer, inner = collector.one("textmill-test", "outer"), collector.one(name="inner")
    assert (outer.trace_id, outer.parent_id, outer.kind, outer.attributes, outer.failed) == (
        TRACE, CLIENTS.split("-")[2], "client", {"a": 1}, False,
    )  # fmt: skip
    assert (inner.trace_id, inner.parent_id, inner.events) == (TRACE, outer.span_id, ("half way",))
    assert inner.failed
    assert inner.attributes == {"error.type": "llm_timeout"}


def test_a_parent_that_cannot_be_read_begins_a_new_trace(collector: Collector) -> None:
    with tracing.span("lone", parent="00-nonsense"):
        pass
    tracing.stop()
    assert collector.one(name="lone").parent_id == ""


def test_log_lines_name_the_trace(collector: Collector) -> None:
    record = logging.makeLogRecord({"msg": "hello"})
    with tracing.span("a", parent=CLIENTS):
        assert f'"trace_id": "{TRACE}"' in JsonFormatter().format(record)
    assert "trace_id" not in JsonFormatter().format(record)


def make(job: CorpusJob, context: object) -> Output:
    with tracing.span("inside"):
        return Output(manifest_key=f"corpora/{job.corpus_id}/manifest.json", manifest={})


def refuse(job: SynthJob, context: object) -> Output:
    raise JobFailed("no such corpus")


def test_one_trace_goes_from_a_request_through_its_job_to_the_job_after_it(collector: Collector) -> None:
    bus = MemoryBus()
    jobs = Jobs(MemoryStore(), ring=bus.ring, bury=bus.bury)
    app = create_app("ingest", jobs=jobs, kinds=["corpus", "synth"], checks={})
    app.include_router(submission_router("/v1/corpora", CorpusJob, jobs))
    corpus_id, synth_id = new_id("cor"), new_id("job")
    body = {
        "corpus_id": corpus_id,
        "document_ids": [new_id("doc")],
        "then": [{"kind": "synth", "job_id": synth_id, "corpus_id": corpus_id}],
    }
    with TestClient(TraceRequests(app)) as http:
        assert http.post("/v1/corpora", json=body, headers={"traceparent": CLIENTS}).status_code == 202
        assert http.get("/healthz").status_code == 200
        assert http.get("/v1/jobs/job_none").status_code == 422
    worker = Worker(jobs, bus, {"corpus": make, "synth": refuse}, "g", Pace(0.02, 0.05, 1.0))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not (jobs.store.exists(f"jobs/synth/{synth_id}/1/result.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.drain()
    thread.join(60)
    tracing.stop()
    ours = {span.name: span for span in collector.spans() if span.trace_id == TRACE}
    assert set(ours) == {"POST /v1/corpora", "ring corpus", "corpus job", "inside", "ring synth", "synth job"}
    request, job = ours["POST /v1/corpora"], ours["corpus job"]
    assert (request.kind, request.attributes["http.response.status_code"]) == ("server", 202)
    assert job.parent_id == request.span_id
    assert ours["inside"].parent_id == job.span_id
    assert job.attributes["textmill.job.outcome"] == "succeeded"
    assert ours["synth job"].failed
    assert ours["synth job"].attributes["error.type"] == "job_failed"
    assert {span.attributes["url.path"] for span in collector.spans() if span.kind == "server"} == {
        "/v1/corpora", "/v1/jobs/job_none",
    }  # fmt: skip


def test_the_same_job_submitted_again_from_another_trace_is_the_same_job(collector: Collector) -> None:
    jobs = Jobs(MemoryStore())
    job = CorpusJob(document_ids=(new_id("doc"),))
    with tracing.span("first"):
        first = jobs.submit(job)
    with tracing.span("second"):
        assert jobs.submit(job) == first
    assert first.traceparent is not None
    assert parse_job(first.to_json()) == first


@pytest.mark.slow
def test_kafka_carries_the_trace_in_a_header(collector: Collector, kafka_servers: str) -> None:
    bus, kind = KafkaBus(kafka_servers, 2.0), f"k{uuid.uuid4().hex[:12]}"
    listener = bus.listen([kind], kind)
    with tracing.span("ringing"):
        expected = tracing.traceparent()
        bus.ring(kind, "job_1")
    bus.ring(kind, "job_2")
    heard, deadline = {}, time.monotonic() + 60
    while len(heard) < 2:
        assert time.monotonic() < deadline
        if (message := listener.wait(0.2)) is not None:
            listener.done(message)
            heard[message.value] = message.traceparent
    listener.close()
    assert heard == {b"job_1": expected, b"job_2": ""}


def test_a_collector_that_is_down_holds_nothing_up() -> None:
    code = """
from textmill import tracing
from textmill.telemetry import configure_logging
configure_logging("info")
tracing.configure("test")
for n in range(1000):
    with tracing.span("a"):
        pass
print("worked", flush=True)
import signal
signal.sigwait([signal.SIGTERM])
"""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{any_free()}"}
    command = [sys.executable, "-c", f"import signal; signal.pthread_sigmask(0, [signal.SIGTERM])\n{code}"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "worked\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
