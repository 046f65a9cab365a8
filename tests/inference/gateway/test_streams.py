"""Streams through the gateway: many at once, a client that is slow or leaves, an engine that dies, and nothing left."""

import asyncio
import json
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from tests.inference.gateway.scripted import CHAT, END, STREAM, body_of, event, post, read_all, whole, within

TOKEN = event(b'{"choices":[{"index":0,"delta":{"content":"x"}}]}')


def test_1000_streams_at_once_all_complete(engine, make_gate):
    """The engine answers none before all have come, so all are under way together."""
    gate, count, come, all_there = make_gate(), 1000, [0], asyncio.Event()

    async def together(request, writer):
        writer.write(STREAM + TOKEN)
        come[0] += 1
        if come[0] == count:
            all_there.set()
        await all_there.wait()
        for _ in range(5):
            writer.write(TOKEN)
            await asyncio.sleep(0)
        writer.write(END)

    engine.script = together

    async def ask_all(pool):
        return await asyncio.gather(*(read_all(pool) for _ in range(count)))

    answers = within(gate, ask_all)
    expected = b"".join(line + b"\n\n" for line in [json_of(TOKEN)] * 6 + [b"data: [DONE]"])
    assert {status for status, _ in answers} == {200}
    assert {data for _, data in answers} == {expected}
    assert gate.upstream.in_flight == 0
    assert [outcome.complete for outcome in gate.upstream.outcomes] == [True] * count
    assert gate.metric("requests_in_flight", route="chat", model="small", group="open") == 0


def json_of(chunk):
    return chunk.split(b"\r\n")[1].rstrip()


def test_a_slow_client_slows_the_engine_down(engine, make_gate, waits):
    gate, total, written = make_gate(), 64 * 1024 * 1024, [0]
    piece = event(b"x" * 65_000)

    async def flood(request, writer):
        writer.write(STREAM)
        while written[0] < total:
            writer.write(piece)
            written[0] += len(piece)
            await writer.drain()
        writer.write(END)

    engine.script = flood
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.settimeout(120)
    client.connect(("127.0.0.1", urlsplit(gate.url).port))
    body = body_of(stream=True)
    client.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    seen = [-1, -2, -3, -4, -5]

    def stands():
        seen[:] = [*seen[1:], written[0]]
        return written[0] > 0 and len(set(seen)) == 1

    waits(stands, "the engine to stand still")
    assert written[0] < total // 2
    got = tail = b""
    size = 0
    while not tail.endswith(b"0\r\n\r\n"):
        got = client.recv(1 << 20)
        assert got
        size += len(got)
        tail = (tail + got)[-16:]
    client.close()
    assert size > total
    assert written[0] >= total


def test_a_client_that_leaves_ends_the_engines_work_within_few_events(engine, make_gate, waits):
    gate, sent, ended = make_gate(), [0], []

    async def for_ever(request, writer):
        writer.write(STREAM)
        try:
            while True:
                writer.write(TOKEN)
                await writer.drain()
                sent[0] += 1
                await asyncio.sleep(0.05)
        finally:
            ended.append(sent[0])

    engine.script = for_ever

    async def leave(pool):
        incoming = await post(pool, body_of(stream=True))
        await incoming.read()
        incoming.close()
        return sent[0]

    at_leaving = within(gate, leave)
    waits(lambda: ended, "the engine to notice")
    assert ended[0] - at_leaving < 200  # 10 s of them, so that a busy machine passes, and of no end to them
    waits(lambda: gate.upstream.outcomes, "the exchange to be settled")
    assert [(outcome.status, outcome.complete) for outcome in gate.upstream.outcomes] == [(499, False)]
    assert gate.metric("requests_total", route="chat", model="small", group="open", status="499") == 1


def test_a_client_that_hangs_up_at_done_has_had_its_answer(engine, make_gate, waits):
    """As OpenAI's clients do, which may be before the engine has ended the body."""
    gate, left = make_gate(), []

    async def slow_to_end(request, writer):
        writer.write(STREAM + TOKEN + event(b"[DONE]"))
        while not left:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        writer.write(b"0\r\n\r\n")

    engine.script = slow_to_end

    async def hang_up(pool):
        incoming, data = await post(pool, body_of(stream=True)), b""
        while b"[DONE]" not in data:
            data += await incoming.read()
        incoming.close()
        left.append(True)

    within(gate, hang_up)
    waits(lambda: gate.upstream.outcomes, "the exchange to be settled")
    assert [(outcome.status, outcome.complete) for outcome in gate.upstream.outcomes] == [(200, True)]
    assert gate.metric("requests_total", route="chat", model="small", group="open", status="200") == 1


def test_an_engine_that_is_killed_in_the_middle_leaves_an_error_event(make_gate, waits, tmp_path):
    """A real process, and kill -9."""
    script = tmp_path / "engine.py"
    script.write_text(
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    wire, _ = listener.accept()\n"
        "    wire.recv(65536)\n"
        f"    wire.sendall({STREAM + TOKEN!r})\n"
        "    wire.sendall(b'20\\r\\ndata: {\"half')\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    try:
        gate = make_gate()
        gate.upstream.url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        async def ask(pool):
            incoming = await post(pool, body_of(stream=True))
            first = await incoming.read()
            while b"half" not in first:
                first += await incoming.read()
            process.kill()
            rest = await incoming.read_all(100_000)
            return first, rest, incoming.whole

        first, rest, ended_cleanly = within(gate, ask)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert json_of(TOKEN) in first
    assert rest.startswith(b"\n\ndata: ")
    error = json.loads(rest.strip().removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("engine_lost", "server_error")
    assert ended_cleanly
    assert b"[DONE]" not in rest
    assert gate.upstream.suspected == 1
    assert [(outcome.status, outcome.complete) for outcome in gate.upstream.outcomes] == [(200, False)]
    assert gate.metric("broken_streams_total", route="chat", model="small", group="open") == 1


def test_a_plain_answer_that_breaks_off_is_asked_for_again(engine, make_gate):
    gate, replies = make_gate(), [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", whole({"fine": True})]

    async def break_off(request, writer):
        writer.write(replies.pop(0))
        if replies:
            writer.close()

    engine.script = break_off
    status, data = within(gate, lambda pool: read_all(pool, body_of()))
    assert (status, json.loads(data)) == (200, {"fine": True})
    assert len(engine.requests) == 2
    assert [outcome.complete for outcome in gate.upstream.outcomes] == [False, True]
    assert gate.metric("retries_total", route="chat", model="small", group="open") == 1


def test_a_plain_answer_of_many_megabytes_passes_through(engine, make_gate):
    text = b'{"x":"' + b"y" * 5_000_000 + b'","usage":{"prompt_tokens":7,"completion_tokens":9}}'

    async def large(request, writer):
        writer.write(whole(text))

    engine.script = large
    gate = make_gate()
    status, data = within(gate, lambda pool: read_all(pool, body_of()))
    assert (status, data) == (200, text)
    assert gate.metric("tokens_total", route="chat", model="small", group="open", kind="completion") == 9


def test_streams_tokens_are_counted_from_their_usage_or_by_their_events(engine, make_gate):
    gate, usage = make_gate(), event(b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}')

    async def stream(request, writer):
        writer.write(STREAM + TOKEN * 3 + (usage if b"include_usage" in request.body else b"") + END)

    engine.script = stream
    within(gate, lambda pool: read_all(pool, body_of(stream=True, stream_options={"include_usage": True})))
    within(gate, read_all)

    def tokens(kind):
        return gate.metric("tokens_total", route="chat", model="small", group="open", kind=kind)

    assert (tokens("prompt"), tokens("completion"), tokens("unreported")) == (7, 3, 3)
    assert [outcome.tokens for outcome in gate.upstream.outcomes] == [3, 0]


def test_gaps_and_first_tokens_are_timed(engine, make_gate):
    """The engine begins a gap only when the client has the token before it: no gap can look shorter than it was."""
    gate, got = make_gate(), [0]

    async def stream(request, writer):
        writer.write(STREAM + TOKEN)
        for number in range(1, 4):
            while got[0] < number:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            writer.write(TOKEN)
        while got[0] < 4:
            await asyncio.sleep(0.001)
        writer.write(END)

    async def read(pool):
        incoming = await post(pool, body_of(stream=True))
        while data := await incoming.read():
            got[0] += data.count(b'"delta"')
        incoming.close()

    engine.script = stream
    within(gate, read)
    labels = {"route": "chat", "model": "small", "group": "open"}
    assert gate.metric("time_to_first_token_seconds_count", **labels) == 1
    assert gate.metric("inter_token_seconds_count", **labels) == 3
    assert gate.metric("inter_token_seconds_bucket", le="0.04", **labels) == 0


@pytest.mark.parametrize("ends", ["whole", "left", "broken"])
def test_nothing_is_left_of_exchanges_that_are_over(engine, make_gate, waits, ends):
    gate = make_gate()
    within(gate, read_all)
    waits(lambda: gate.tasks <= 3, "the first request's task to end")
    before = gate.tasks

    async def stream(request, writer):
        writer.write(STREAM + TOKEN)
        if ends == "broken":
            writer.close()
        elif ends == "whole":
            writer.write(END)
        else:
            await asyncio.sleep(30)

    engine.script = stream

    async def some(pool):
        async def one():
            incoming = await post(pool, body_of(stream=True))
            await incoming.read()
            if ends != "left":
                await incoming.read_all(100_000)
            incoming.close()

        for _ in range(3):
            await asyncio.gather(*(one() for _ in range(20)))

    within(gate, some)
    waits(lambda: gate.tasks <= before, "all tasks to end")
    waits(lambda: gate.upstream.in_flight == 0, "all exchanges to end")
    waits(lambda: len(gate.upstream.outcomes) == 61, "all outcomes to be noted")
    assert gate.metric("requests_in_flight", route="chat", model="small", group="open") == 0
    assert gate.gateway._pools.idle <= 20
    if ends != "whole":
        assert gate.gateway._pools.idle <= 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_server_that_ends_first_says_so(engine, make_gate, begun):
    """As uvicorn does when its grace is over: it cancels the request's task."""
    gate = make_gate()

    async def hang(request, writer):
        if begun:
            writer.write(STREAM + TOKEN)
        await asyncio.sleep(30)

    engine.script = hang

    def cancel():
        for task in asyncio.all_tasks(gate.loops[0]):
            if "run_asgi" in repr(task.get_coro()):
                task.cancel()

    async def ask(pool):
        asking = asyncio.create_task(post(pool, body_of(stream=True)))
        while not (gate.upstream.in_flight and engine.requests):
            await asyncio.sleep(0.01)
        if begun:
            await (await asking).read()
        gate.loops[0].call_soon_threadsafe(cancel)
        incoming = await asking
        return incoming.status, (await incoming.read_all(10_000)).removeprefix(b"data: ")

    status, data = within(gate, ask)
    assert status == (200 if begun else 503)
    assert json.loads(data)["error"]["code"] == "shutting_down"
    assert gate.upstream.in_flight == 0
