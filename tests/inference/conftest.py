"""Real servers on loopback: one that speaks OpenAI's protocol in place of an engine, and the gateway in front of it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from starlette.types import ASGIApp

from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.ports import Outcome


@dataclass
class OpenAIServer:
    """Answers chat and completions with ``words``, as vLLM does. The other fields make it misbehave."""

    words: list[str] = field(default_factory=lambda: ["Seven", " has", " six", " lines"])
    words_per_chunk: int = 1
    gap_s: float = 0.0
    refuse_next: int = 0
    break_after: int | None = None
    dead_next: int = 0
    healthy: bool = True
    error_status: int | None = None
    bodies: list[dict[str, object]] = field(default_factory=list)
    raw_bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: int = 0
    sent: bytes = b""
    url: str = ""

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        self.raw_bodies.append(raw)
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuse_next:
            self.refuse_next -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.dead_next:
            self.dead_next -= 1
            self.healthy = False
            return web.json_response({"error": {"message": "EngineCore died"}}, status=500)
        if self.error_status is not None:
            return web.json_response({"error": {"message": "no", "type": "x"}}, status=self.error_status)
        try:
            if body.get("stream"):
                return await self._stream(request, body)
            await asyncio.sleep(self.gap_s * len(self.words))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.json_response(self._whole(body))

    async def _stream(self, request: web.Request, body: dict[str, object]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        options = body.get("stream_options") or {}
        assert isinstance(options, dict)
        self.sent = b""
        await self._event(response, self._chunk({"role": "assistant", "content": ""}, 0, options))
        for start in range(0, len(self.words), self.words_per_chunk):
            await asyncio.sleep(self.gap_s)
            words = self.words[start : start + self.words_per_chunk]
            if self.break_after is not None and start >= self.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await self._event(response, self._chunk({"content": "".join(words)}, start + len(words), options))
        await self._event(response, self._chunk({}, len(self.words), options, finish="stop"))
        if options.get("include_usage"):
            await self._event(
                response,
                {**self._base(), "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(self.words)}},
            )
        await self._raw(response, b"data: [DONE]\n\n")
        return response

    async def _event(self, response: web.StreamResponse, value: dict[str, object]) -> None:
        await self._raw(response, b"data: " + json.dumps(value).encode() + b"\n\n")

    async def _raw(self, response: web.StreamResponse, data: bytes) -> None:
        self.sent += data
        await response.write(data)

    def _base(self) -> dict[str, object]:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def _chunk(
        self, delta: dict[str, str], tokens: int, options: dict[str, object], finish: str | None = None
    ) -> dict[str, object]:
        value = {**self._base(), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        if options.get("continuous_usage_stats"):
            value["usage"] = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        return value

    def _whole(self, body: dict[str, object]) -> dict[str, object]:
        text = "".join(self.words)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": len(self.words), "total_tokens": 5 + len(self.words)}
        return {**self._base(), "object": "chat.completion", "choices": [choice], "usage": usage}


@dataclass
class FakeUpstream:
    """An engine as the gateway sees it, and the route that leads to it alone."""

    name: str
    url: str
    ready: bool = True
    trouble: str = ""
    model: str = ""
    shadow: "FakeUpstream | None" = None
    in_flight: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    suspected: int = 0
    on_suspect: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.model = self.model or self.name

    def choose(self, sample: float) -> "FakeUpstream":
        return self

    def take_shadow(self) -> "FakeUpstream | None":
        return self.shadow

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def suspect(self) -> None:
        self.suspected += 1
        self.on_suspect()


@dataclass
class RunningGateway:
    url: str
    upstreams: dict[str, FakeUpstream]
    engine: OpenAIServer


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.01)


@pytest.fixture
def waits() -> Callable[..., None]:
    return wait_for


@pytest.fixture
def engine_server() -> Iterator[OpenAIServer]:
    server = OpenAIServer()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.complete)
        app.router.add_post("/v1/completions", server.complete)
        app.router.add_get("/health", server.health)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield server
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], str]]:
    """Runs an ASGI app in a real uvicorn and gives its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def start(app: ASGIApp) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running.append((server, thread, listener))
        wait_for(lambda: server.started, "uvicorn to start")
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture
def make_gateway(engine_server: OpenAIServer, serve: Callable[[ASGIApp], str]) -> Callable[..., RunningGateway]:
    def make(keys: tuple[str, ...] = (), hold_s: float = 60.0, name: str = "small") -> RunningGateway:
        upstreams = {name: FakeUpstream(name, engine_server.url)}
        app = FastAPI()

        @app.get("/healthz")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        url = serve(Gateway(app, lambda: upstreams, KeyRing(keys), hold_s))
        return RunningGateway(url, upstreams, engine_server)

    return make


@pytest.fixture
def gateway(make_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    return make_gateway()
