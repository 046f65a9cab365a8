"""What the gateway asks of its neighbours on the way of a request: keys, admission, routes, shadows, the recorder."""

import asyncio
import hashlib
import json

import pytest
from tests.inference.gateway.scripted import (
    END,
    STREAM,
    Recorder,
    Upstream,
    body_of,
    event,
    post,
    read_all,
    whole,
    within,
)

from textmill_inference.gateway.admission import Admission, Room
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.openai_errors import OpenAIError

KEY = b"Authorization: Bearer sk-right\r\n"


class Permit:
    def __init__(self, told):
        self.told = told

    def release(self, tokens_used=None):
        self.told.append(("release", tokens_used))

    def give_back(self):
        self.told.append(("give_back",))


class Gatekeeper:
    """Lets in, makes wait until ``open`` is set, or refuses; keeps what it was told."""

    def __init__(self, waits=False, refusal=None):
        self.told, self.waits, self.refusal = [], waits, refusal
        self.waiting = 0
        self.open = asyncio.Event()

    def try_enter(self, caller, model, tokens):
        self.told.append(("enter", caller.group, model, tokens))
        if self.refusal:
            raise self.refusal
        return None if self.waits else Permit(self.told)

    async def enter(self, caller, model, tokens):
        self.waiting += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.told.append(("left",))
            raise
        finally:
            self.waiting -= 1
        return Permit(self.told)


def test_a_permit_is_taken_for_the_cost_and_released_with_what_was_used(gate, make_gate):
    keeper = Gatekeeper()
    gate = make_gate(admission=keeper)
    body = body_of(max_tokens=10)
    within(gate, lambda pool: read_all(pool, body))
    assert keeper.told == [("enter", "open", "small", len(body) // 4 + 10), ("release", 9)]


def test_an_answer_without_usage_releases_without_a_number(engine, make_gate):
    async def stream(request, writer):
        writer.write(STREAM + event(b"{}") + END)

    engine.script = stream
    keeper = Gatekeeper()
    within(make_gate(admission=keeper), read_all)
    assert keeper.told[1:] == [("release", None)]


def test_a_refusal_is_the_answer_and_nothing_reaches_the_engine(engine, make_gate):
    keeper = Gatekeeper(refusal=OpenAIError(429, "too many", code="rate_limit_exceeded", retry_after_s=7))
    gate = make_gate(admission=keeper)

    async def ask(pool):
        incoming = await post(pool, body_of())
        data = await incoming.read_all(10_000)
        incoming.close()
        return incoming.status, dict(incoming.headers)[b"retry-after"], json.loads(data)["error"]["code"]

    assert within(gate, ask) == (429, b"7", "rate_limit_exceeded")
    assert engine.requests == []
    assert len(keeper.told) == 1
    assert gate.metric("requests_total", route="chat", model="small", group="open", status="429") == 1


def test_who_leaves_the_queue_is_forgotten(engine, make_gate, waits):
    keeper = Gatekeeper(waits=True)
    gate = make_gate(admission=keeper)

    async def leave(pool):
        asking = asyncio.create_task(post(pool, body_of()))
        while not keeper.waiting:
            await asyncio.sleep(0.01)
        asking.cancel()

    within(gate, leave)
    waits(lambda: ("left",) in keeper.told, "the place in the queue to be given up")
    assert engine.requests == []
    labels = {"route": "chat", "model": "small", "group": "open"}
    waits(lambda: gate.metric("requests_total", status="499", **labels) == 1, "the request to be counted")
    assert gate.metric("requests_in_flight", **labels) == 0


def test_an_engine_that_never_comes_costs_no_tokens(make_gate):
    keeper = Gatekeeper()
    gate = make_gate(Upstream("http://127.0.0.1:9", ready=False, trouble="starting"), admission=keeper, hold_s=0.05)
    status, data = within(gate, lambda pool: read_all(pool, body_of()))
    assert (status, json.loads(data)["error"]["code"]) == (503, "engine_unavailable")
    assert keeper.told[1:] == [("give_back",)]


def test_keys_decide_the_metrics_group_and_are_asked_before_the_body_is_read(engine, make_gate):
    gate = make_gate(keys=KeyRing((hashlib.sha256(b"sk-right").hexdigest(),)))
    assert within(gate, lambda pool: read_all(pool, body_of(), KEY))[0] == 200
    status, data = within(gate, lambda pool: read_all(pool, b"no JSON"))
    assert (status, json.loads(data)["error"]["code"]) == (401, "missing_api_key")
    assert gate.metric("requests_total", route="chat", model="small", group="static", status="200") == 1
    assert gate.metric("requests_total", route="chat", model="", group="", status="401") == 1
    assert len(engine.requests) == 1


def test_an_adapter_is_asked_by_its_own_name(engine, make_gate):
    gate = make_gate(Upstream(engine.url, model="small-v2"))
    within(gate, lambda pool: read_all(pool, body_of(temperature=0.5)))
    assert engine.requests[0].json == {**json.loads(body_of(temperature=0.5)), "model": "small-v2"}


def test_a_shadow_gets_a_copy_that_no_client_waits_for(engine, make_engine, make_gate, waits):
    shadow_engine, go = make_engine(), []

    async def slowly(request, writer):
        while not go:
            await asyncio.sleep(0.01)
        writer.write(whole({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}))

    shadow_engine.script = slowly
    shadow = Upstream(shadow_engine.url, name="next", model="next")
    recorder = Recorder()
    gate = make_gate(Upstream(engine.url, shadow=shadow), recorder=recorder)
    assert within(gate, lambda pool: read_all(pool, body_of(), b"X-Request-Id: one\r\n"))[0] == 200
    assert shadow.in_flight == 1
    go.append(True)
    waits(lambda: len(recorder.kept) == 2, "the copy to be answered")
    assert [(kept.upstream, kept.shadow, kept.request_id) for kept in recorder.kept] == [
        ("small", False, "one"),
        ("next", True, "one"),
    ]
    assert shadow_engine.requests[0].json["model"] == "next"
    assert [(outcome.status, outcome.tokens) for outcome in shadow.outcomes] == [(200, 2)]
    labels = {"route": "chat", "model": "small", "group": "open"}
    assert gate.metric("shadow_requests_total", outcome="answered", **labels) == 1
    assert gate.metric("requests_total", status="200", **labels) == 1
    assert gate.metric("tokens_total", kind="completion", **labels) == 4


def test_a_shadow_that_fails_harms_nobody(gate, make_gate, engine, waits):
    shadow = Upstream("http://127.0.0.1:9", name="next")
    gate = make_gate(Upstream(engine.url, shadow=shadow))
    assert within(gate, lambda pool: read_all(pool, body_of()))[0] == 200
    waits(lambda: shadow.outcomes, "the copy to fail")
    assert [(outcome.status, outcome.complete) for outcome in shadow.outcomes] == [(503, False)]
    assert shadow.in_flight == 0


@pytest.mark.parametrize(("bound", "cut"), [(10_000, False), (20, True)])
def test_the_recorder_gets_both_sides_and_the_answer_bounded(engine, make_gate, bound, cut):
    async def stream(request, writer):
        writer.write(STREAM + event(b'{"a":1}'))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(END)

    engine.script = stream
    recorder = Recorder(bound)
    gate = make_gate(recorder=recorder)
    body = body_of(stream=True)
    _, data = within(gate, lambda pool: read_all(pool, body))
    [kept] = recorder.kept
    assert (kept.request, kept.answer, kept.answer_cut) == (body, data[:bound], cut)
    assert (kept.route, kept.model, kept.upstream, kept.status) == ("chat", "small", "small", 200)
    assert kept.complete
    assert kept.streamed
    assert kept.began_at <= kept.first_byte_at <= kept.ended_at


def test_what_the_recorder_does_not_want_is_not_kept(make_gate):
    recorder = Recorder()
    recorder.wanted = False
    within(make_gate(recorder=recorder), lambda pool: read_all(pool, body_of()))
    assert recorder.kept == []


def test_names_of_no_model_are_never_recorded_or_labels(make_gate):
    recorder = Recorder()
    gate = make_gate(recorder=recorder)
    assert within(gate, lambda pool: read_all(pool, b'{"model":"invented"}'))[0] == 404
    assert recorder.kept == []
    assert gate.metric("requests_total", route="chat", model="", group="open", status="404") == 1


def test_the_real_admission_lets_one_in_after_the_other(engine, make_gate):
    under_way, most = [0], [0]

    async def alone(request, writer):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        await asyncio.sleep(0.02)
        under_way[0] -= 1
        await engine.plain(request, writer)

    engine.script = alone
    gate = make_gate(admission=Admission(Room(in_flight=1, queue=10)))

    async def five(pool):
        return await asyncio.gather(*(read_all(pool, body_of()) for _ in range(5)))

    assert {status for status, _ in within(gate, five)} == {200}
    assert most[0] == 1


def test_an_engine_that_moves_is_followed_and_old_addresses_are_forgotten(engine, make_gate, waits):
    gate = make_gate()

    async def move(pool):
        for number in range(70):
            gate.upstream.url = f"{engine.url}/{number}"
            assert (await read_all(pool, body_of()))[0] == 200

    within(gate, move)
    assert engine.requests[-1].head.startswith(b"POST /69/v1/chat/completions ")
    assert gate.gateway._pools.idle <= 64
    waits(lambda: engine.open <= 64, "connections to old addresses to be closed")


def test_a_model_that_is_withdrawn_while_its_engine_is_awaited_is_not_found(engine, make_gate):
    gate = make_gate(Upstream(engine.url, ready=False, trouble="starting"))

    async def ask(pool):
        asking = asyncio.create_task(read_all(pool, body_of()))
        while not gate.metric("requests_in_flight", route="chat", model="small", group="open"):
            await asyncio.sleep(0.01)
        gate.routes.clear()
        return await asking

    status, data = within(gate, ask)
    assert (status, json.loads(data)["error"]["code"]) == (404, "model_not_found")
