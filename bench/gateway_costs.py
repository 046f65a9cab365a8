"""What each step of the gateway's hot path costs, in microseconds, step by step without a network.

    python bench/gateway_costs.py

Of each step the fastest of many rounds counts: what else the machine does can only make one slower.
"""

import asyncio
import gc
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import gateway_mock
import gateway_world as world
import uvloop

from textmill.http1_connection import Connection
from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.departure import Departure
from textmill_inference.gateway.exchange import Exchange
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.metrics import Series
from textmill_inference.gateway.relay import passed
from textmill_inference.gateway.request import forwarded, parse

_ROUNDS, _TIMES = 40, 500
BODY = world.Ask("http://mock").body
SCOPE = {
    "headers": [
        (b"host", b"127.0.0.1:8100"), (b"authorization", b"Bearer " + world.KEY.encode()), (b"accept", b"*/*"),
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY)),
        (b"user-agent", b"OpenAI/Python"),
    ]
}  # fmt: skip
ANSWERED = [
    (b"date", b"Sun, 22 Nov 2026 10:00:00 GMT"), (b"server", b"uvicorn"), (b"content-length", b"600"),
    (b"content-type", b"application/json"),
]  # fmt: skip
EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"delta":{"content":" hexagram"}}]}\n\n'


def costs() -> dict[str, float]:
    """Microseconds a call, by step. Those of a request come first, those of a stream's piece last."""
    return uvloop.run(_measured())


async def _measured() -> dict[str, float]:
    ring = KeyRing((hashlib.sha256(world.KEY.encode()).hexdigest(),), required=True)
    caller, admission, asked = ring.identify(SCOPE["headers"]), Admission(), parse(BODY)

    async def send(message: Any) -> None:
        pass

    def exchange() -> Exchange:
        return Exchange("chat", "/v1/chat/completions", asked, caller, Series(), "req_1", b"", send)

    def enter_and_release() -> None:
        permit = admission.try_enter(caller, "mock", asked.cost)
        assert permit is not None
        permit.release(60)

    one, wire, streamed = exchange(), _wire(), _wire()
    one.streamed = True
    incoming = streamed.begin(b"", b"")
    streamed.data_received(gateway_mock.STREAM_HEAD)

    async def exchanged() -> None:
        answer = wire.begin(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY)
        wire.data_received(gateway_mock.PLAIN)
        await answer.until_head()
        await answer.read_all(1 << 20)

    async def passed_on() -> None:
        streamed.data_received(gateway_mock.TOKEN)
        await incoming.read()

    found = {
        "request: key": _sync(lambda: ring.identify(SCOPE["headers"])),
        "request: headers and id": _sync(lambda: forwarded(SCOPE)),
        "request: body (msgspec)": _sync(lambda: parse(BODY)),
        "request: body, had it been json": _sync(lambda: json.loads(BODY)),
        "request: admission": _sync(enter_and_release),
        "request: exchange, metrics, outcome": _sync(lambda: _whole_life(exchange())),
        "request: answer's headers": _sync(lambda: passed(ANSWERED, "req_1")),
        "request: watching for the client to leave": await _async(lambda: _watched(exchange())),
        "request: client, without the sockets": await _async(exchanged),
        "piece: client, without the socket": await _async(passed_on),
        "piece: tokens": _sync(lambda: one.count.take(EVENT)),
        "piece: time since the last": _sync(lambda: one.piece_came(EVENT)),
        "piece: waiting for it": await _async(_woken),
    }
    return {name: round(value, 2) for name, value in found.items()}


def _whole_life(exchange: Exchange) -> None:
    exchange.outcome(True, 200)
    exchange.settle()


async def _watched(exchange: Exchange) -> None:
    task = asyncio.current_task()
    assert task is not None
    message = asyncio.Event()

    async def receive() -> Any:
        await message.wait()

    departure = Departure(receive, exchange, task)
    await asyncio.sleep(0)
    departure.forget()
    await asyncio.sleep(0)


class _NoWire(asyncio.Transport):
    """A transport that takes all and does nothing."""

    def write(self, data: object) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


def _wire() -> Connection:
    connection = Connection(lambda freed: None)
    connection.connection_made(_NoWire())
    return connection


async def _woken() -> None:
    """A future made, fulfilled from a callback and awaited, as for each piece that isn't there yet."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    loop.call_soon(waiter.set_result, None)
    await waiter


def _sync(step: Callable[[], object]) -> float:
    def round_of() -> float:
        began = time.perf_counter()
        for _ in range(_TIMES):
            step()
        return time.perf_counter() - began

    gc.disable()
    try:
        return min(round_of() for _ in range(_ROUNDS)) / _TIMES * 1e6
    finally:
        gc.enable()


async def _async(step: Callable[[], Awaitable[None]]) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_TIMES):
            await step()
        best = min(best, time.perf_counter() - began)
    return best / _TIMES * 1e6


def main() -> None:
    for name, cost in costs().items():
        print(f"{name:<45} {cost:>7.2f} us")


if __name__ == "__main__":
    main()
