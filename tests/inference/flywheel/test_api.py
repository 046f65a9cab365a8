"""The whole wheel over HTTP: from a chat through the gateway to feedback, traces, documents and preference pairs."""

import json
import urllib.error
import urllib.request

import openai
import pytest
from tests.inference.conftest import FakeUpstream

from textmill.bus import MemoryBus
from textmill.contracts.load import TraceEntry
from textmill.contracts.preferences import PreferenceLine
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_inference.flywheel.api import traffic_router
from textmill_inference.flywheel.log import LogBounds, RequestLog
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing


class Wheel:
    def __init__(self, url, bus):
        self.url, self.bus = url, bus
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def json(self, method, path, body=None):
        status, data = self.call(method, path, body)
        assert status < 300, data
        return json.loads(data)

    def chat(self, question, **more):
        """The request id of its answer."""
        messages = [{"role": "user", "content": question}]
        raw = self.openai.chat.completions.with_raw_response.create(model="small", messages=messages, **more)
        if more.get("stream"):
            list(raw.parse())
        return raw.headers["x-request-id"]

    def logged(self):
        return self.json("GET", "/v1/traffic/exchanges")["items"]


@pytest.fixture
def wheel(engine_server, serve, waits):
    store, bus = MemoryStore(), MemoryBus()
    jobs = Jobs(store, ring=bus.ring)
    app = create_app("inference", jobs=jobs, kinds=("compare",), checks={})
    app.include_router(traffic_router(store, jobs))
    log = RequestLog(store, LogBounds(flush_s=0.01, policy_every_s=0.01))
    log.start()
    upstream = FakeUpstream("small", engine_server.url)
    yield Wheel(serve(Gateway(app, lambda: {"small": upstream}, KeyRing(), 60.0, recorder=log)), bus)
    log.stop()


def test_nothing_is_kept_until_the_policy_says_so(wheel, waits):
    wheel.chat("Before?")
    wheel.json("PUT", "/v1/traffic/policy", {"rules": [{"model": "small"}], "retention_days": 7})
    asked = []
    waits(lambda: asked.append(wheel.chat("After?")) or len(wheel.logged()) > 0, "the policy to be followed")
    assert {e["messages"][0]["content"] for e in wheel.logged()} == {"After?"}
    assert wheel.json("GET", "/v1/traffic/policy")["retention_days"] == 7


def test_the_wheel_turns(wheel, waits):
    wheel.json("PUT", "/v1/traffic/policy", {"rules": [{}]})
    waits(lambda: wheel.chat("ready?") and len(wheel.logged()) > 0, "the policy to be followed")
    right, wrong = wheel.chat("How many lines?"), wheel.chat("Call 13800138000?", stream=True)
    waits(lambda: {right, wrong} <= {e["request_id"] for e in wheel.logged()}, "both to be logged")
    found = wheel.json("GET", f"/v1/traffic/exchanges/{wrong}")["items"][0]
    assert found["messages"][0]["content"] == "Call [mobile]?"
    assert (found["answer"], found["streamed"], found["group"]) == ("Seven has six lines", True, "open")

    status, _ = wheel.call("POST", "/v1/feedback", {"request_id": right, "rating": "up"})
    assert status == 201
    assert wheel.call("POST", "/v1/feedback", {"request_id": right, "rating": "up"})[0] == 200
    wheel.json("POST", "/v1/feedback", {"request_id": wrong, "corrected_answer": "I can't call."})
    assert len(wheel.json("GET", f"/v1/feedback?request_id={right}")["items"]) == 1

    trace = wheel.json("POST", "/v1/traffic/traces", {})
    _, lines = wheel.call("GET", f"/v1/traffic/traces/{trace['trace_id']}/lines")
    entries = [TraceEntry.model_validate_json(line) for line in lines.splitlines()]
    assert len(entries) == trace["requests"] == len(wheel.logged())
    assert all(entry.prompt_tokens for entry in entries)
    assert [t["trace_id"] for t in wheel.json("GET", "/v1/traffic/traces")["items"]] == [trace["trace_id"]]

    _, pairs = wheel.call("GET", "/v1/traffic/preferences?with_redacted=true")
    line = PreferenceLine.model_validate_json(pairs)
    assert (line.chosen, line.rejected) == ("I can't call.", "Seven has six lines")

    made = wheel.json("POST", "/v1/traffic/documents", {})
    assert made["taken"] == {"approved": 1}
    assert made["left_out"]["redacted"] == 1
    assert wheel.bus.queue("harvest").get_nowait().decode() == made["job_id"]
    assert wheel.json("GET", f"/v1/traffic/documents/{made['harvest_id']}") == made

    gone = wheel.json("DELETE", f"/v1/traffic/exchanges/{right}")
    assert (gone["exchanges"], gone["feedback"], gone["still_in"]) == (1, 1, [made["harvest_id"]])
    assert wheel.call("GET", f"/v1/traffic/exchanges/{right}")[0] == 404
    assert wheel.call("DELETE", f"/v1/traffic/traces/{trace['trace_id']}")[0] == 204
    assert wheel.call("GET", f"/v1/traffic/traces/{trace['trace_id']}")[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/feedback", {"request_id": "x"}),
        ("POST", "/v1/feedback", {"request_id": "x", "rating": "fine"}),
        ("PUT", "/v1/traffic/policy", {"rules": [{"share": 2}]}),
        ("POST", "/v1/traffic/traces", {"since": "2026-01-01T00:00:00"}),
        ("GET", "/v1/traffic/exchanges?limit=0", None),
    ],
)
def test_what_is_malformed_is_refused(wheel, method, path, body):
    assert wheel.call(method, path, body)[0] == 422
