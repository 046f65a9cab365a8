"""What a collector of traces has seen of the main job: one trace, from the upload to the model's first answers."""

import time
from collections import Counter

import openai
import pytest
from installation import Installation, Tuned
from tests.collector import Collector, Span

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]
SERVICES = {"cli", "ingest", "synth", "trainer", "inference", "engine"}


def run_span(collector: Collector) -> Span:
    """The root of the recipe's trace: what ``textmill run`` did."""
    [root] = [span for span in collector.spans("textmill-cli") if span.name.startswith("run ")]
    return root


def until(collector: Collector, service: str, trace_id: str) -> None:
    """Spans of this service have come for the trace; they are sent twice a second."""
    deadline = time.monotonic() + 60
    while not any(span.trace_id == trace_id for span in collector.spans(service)):
        assert time.monotonic() < deadline, f"no span of {service} in the trace"
        time.sleep(0.1)


def test_one_trace_goes_from_the_upload_to_the_served_model(tuned: Tuned, collector: Collector) -> None:
    root = run_span(collector)
    for service in SERVICES:
        until(collector, f"textmill-{service}", root.trace_id)
    spans = {span.span_id: span for span in collector.spans() if span.trace_id == root.trace_id}
    assert {span.service for span in spans.values()} == {f"textmill-{service}" for service in SERVICES}
    assert [span.name for span in spans.values() if span.parent_id not in spans] == [root.name]
    names = Counter(span.name for span in spans.values())
    assert names["POST /v1/documents"] == 2
    assert {name: names[f"{name} job"] for name in ("corpus", "synth", "train", "deploy")} == dict.fromkeys(
        ("corpus", "synth", "train", "deploy"), 1
    )


def test_the_spans_of_a_job_lead_to_it_and_to_the_calls_that_it_made(tuned: Tuned, collector: Collector) -> None:
    synth = next(job["job"] for job in tuned.jobs if job["job"]["kind"] == "synth")
    root = run_span(collector)
    job = collector.one("textmill-synth", "synth job")
    assert job.attributes["textmill.job.id"] == synth["job_id"]
    assert job.attributes["textmill.job.outcome"] == "succeeded"
    assert synth["traceparent"].split("-")[1] == root.trace_id
    calls = [span for span in collector.spans("textmill-synth") if span.kind == "client"]
    assert calls
    assert {call.parent_id for call in calls} == {job.span_id}
    requests = {span.parent_id: span for span in collector.spans("textmill-inference") if span.kind == "server"}
    answers = {span.parent_id for span in collector.spans("textmill-engine")}
    for call in calls:
        assert requests[call.span_id].span_id in answers


def test_a_clients_own_trace_reaches_the_engine(installation: Installation, tuned: Tuned, collector: Collector) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    client = openai.OpenAI(base_url=installation.gateway, api_key="none")
    client.chat.completions.create(
        model="zhouyi",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=2,
        extra_headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )
    for service in ("textmill-inference", "textmill-engine"):
        until(collector, service, trace_id)
