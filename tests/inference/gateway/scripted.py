"""An engine that does byte by byte what a test tells it, and what a test sees of the gateway in front of it."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from textmill.http1 import HttpPool, Incoming
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.ports import Exchanged, Outcome

CHAT = "/v1/chat/completions"


@dataclass
class Upstream:
    """An engine as the gateway sees it, and the route that leads to it alone, with a shadow if there is one."""

    url: str
    name: str = "small"
    model: str = "small"
    ready: bool = True
    trouble: str = ""
    shadow: "Upstream | None" = None
    in_flight: int = 0
    suspected: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def choose(self, sample: float) -> "Upstream":
        return self

    def take_shadow(self) -> "Upstream | None":
        return self.shadow

    def suspect(self) -> None:
        self.suspected += 1

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@dataclass
class Request:
    head: bytes
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Engine:
    """``script`` writes the answer to a request; the default answers plainly. Counts what is open."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = self.open = self.healthy = 0
        self.status = 200
        self.script: Callable[[Request, asyncio.StreamWriter], Awaitable[None]] = self.plain
        self.url = ""

    async def plain(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(whole({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                request = Request(head, await reader.readexactly(length))
                if head.startswith(b"GET /health"):
                    writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self.status)
                    continue
                self.requests.append(request)
                await self.script(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def whole(value: Any, more_head: bytes = b"", status: int = 200) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
    return head % (status, more_head, len(body)) + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(data: bytes) -> bytes:
    """A server-sent event as a chunk of an HTTP body; an empty one ends it."""
    line = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(line), line)


END = event(b"[DONE]") + b"0\r\n\r\n"


class Recorder:
    """Keeps all, up to ``answer_bytes`` of each answer."""

    def __init__(self, answer_bytes: int = 1_000_000) -> None:
        self.answer_bytes = answer_bytes
        self.wanted = True
        self.kept: list[Exchanged] = []

    def wants(self, caller: Any, model: str) -> bool:
        return self.wanted

    def record(self, exchanged: Exchanged) -> None:
        self.kept.append(exchanged)


@dataclass
class Gate:
    """A gateway that serves. ``tasks`` are all that its loop has, ``under_way`` the requests it is not done with."""

    url: str
    gateway: Gateway
    upstream: Upstream
    registry: CollectorRegistry
    loops: list[asyncio.AbstractEventLoop]
    routes: dict[str, Upstream]
    under_way: set[int] = field(default_factory=set)

    @property
    def tasks(self) -> int:
        return len(asyncio.all_tasks(self.loops[0]))

    def metric(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"textmill_gateway_{name}", labels)
        return 0.0 if found is None else found


def body_of(**more: Any) -> bytes:
    return json.dumps({"model": "small", "messages": [{"role": "user", "content": "?"}], **more}).encode()


async def post(pool: HttpPool, body: bytes, headers: bytes = b"", path: str = CHAT) -> Incoming:
    return await pool.stream(b"POST", path, headers, body)


async def read_all(pool: HttpPool, body: bytes | None = None, headers: bytes = b"") -> tuple[int, bytes]:
    incoming = await post(pool, body or body_of(stream=True), headers)
    try:
        return incoming.status, await incoming.read_all(100_000_000)
    finally:
        incoming.close()


def within(gate: Gate, client: Callable[[HttpPool], Awaitable[Any]], seconds: float = 120.0) -> Any:
    """What ``client`` returns, asked with a pool for this gateway, once the gateway is done with its requests too.

    A client has the whole of an answer a moment before the gateway has added it up.
    """

    async def bounded() -> Any:
        pool = HttpPool(gate.url, connect_timeout_s=seconds)
        try:
            async with asyncio.timeout(seconds):
                return await client(pool)
        finally:
            pool.close()

    result, until = asyncio.run(bounded()), time.monotonic() + seconds
    while gate.under_way:
        assert time.monotonic() < until, "the gateway isn't done with a request"
        time.sleep(0.001)
    return result
