"""The HTTP side: reads requests, asks a plan what to do with each, does that, and counts.

Serves ``/v1/chat/completions`` and ``/v1/completions`` (whole or streamed), ``/v1/models``, ``/healthz`` and vLLM's
``/health``; and ``/stats``, which a DELETE lets count anew. Knows nothing of rates or prompts.
"""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator

from aiohttp import web
from pydantic import JsonValue

from textmill_cli.fault_llm.limits import Limits
from textmill_cli.fault_llm.replies import Decision, Drip, Garbage, Hang, Received, Reply, Say, Stall, Status
from textmill_cli.fault_llm.stats import Stats

MODEL = "fault-llm"
MAX_REQUEST_BYTES = 64 * 1024 * 1024
_BACKLOG = 4096
_CHAT = "/v1/chat/completions"
_encode = json.JSONEncoder(ensure_ascii=False).encode
_PIECE = re.compile(r"\S+\s*|\s+")


class FaultServer:
    """Belongs to one event loop. ``decide`` is called once for each request that the limits let in."""

    def __init__(self, decide: Callable[[Received], Decision], limits: Limits | None = None) -> None:
        self.stats = Stats(time.monotonic())
        self._decide = decide
        self._limits = limits or Limits()
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: a free one for 0. Raises ``OSError`` when the port is taken."""
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_post(_CHAT, self._answer)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/health", self._healthz)
        app.router.add_get("/stats", self._stats)
        app.router.add_delete("/stats", self._begin_anew)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=_BACKLOG).start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Close all connections, those of open requests too."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "textmill"}
        return web.json_response({"object": "list", "data": [model]})

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.stats.report(time.monotonic()))

    async def _begin_anew(self, request: web.Request) -> web.Response:
        """Count from nothing, tries too. What is still open counts no more."""
        self.stats = Stats(time.monotonic())
        return web.Response(status=204)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        arrived, stats = time.monotonic(), self.stats
        number = stats.open(arrived)
        try:
            data = await request.read()
            call = hashlib.blake2b(data, digest_size=8).hexdigest()
            decision, body = self._settle(stats, number, call, data, request)
            await asyncio.sleep(arrived + decision.after_s - time.monotonic())
            response = await _perform(request, body, decision.reply)
            if decision.outcome == "answered":
                stats.answered[call] += 1
            return response
        except (asyncio.CancelledError, ConnectionError):
            stats.abandoned += 1
            raise
        finally:
            stats.close(number, time.monotonic())

    def _settle(
        self, stats: Stats, number: int, call: str, data: bytes, request: web.Request
    ) -> tuple[Decision, dict[str, JsonValue]]:
        tries = stats.tries[call]
        stats.tries[call] += 1
        body = _read(data)
        decision = self._limits.admit(time.monotonic(), stats.open_requests)
        if decision is None and body is None:
            decision = Decision(Status(400, message="the body must be a JSON object"), "status_400")
        if decision is None:
            decision = self._decide(Received(number, call, tries, body or {}, dict(request.headers)))
        stats.outcomes[decision.outcome] += 1
        return decision, body or {}


def _read(data: bytes) -> dict[str, JsonValue] | None:
    try:
        body = json.loads(data)
    except ValueError:
        return None
    if isinstance(body, dict) and "messages" not in body and isinstance(prompt := body.get("prompt"), str):
        body["messages"] = [{"role": "user", "content": prompt}]
    return body if isinstance(body, dict) else None


async def _perform(request: web.Request, body: dict[str, JsonValue], reply: Reply) -> web.StreamResponse:
    match reply:
        case Say() if body.get("stream"):
            return await _stream(request, body, reply)
        case Say():
            whole = completion(reply, body) if request.path == _CHAT else text_completion(reply, body)
            return web.Response(body=_dump(whole), content_type="application/json")
        case Status(status, retry_after, message):
            headers = {"Retry-After": retry_after} if retry_after is not None else {}
            error = {"message": message, "type": "planted_fault", "param": None, "code": str(status)}
            return web.json_response({"error": error}, status=status, headers=headers)
        case Garbage():
            return web.Response(text="<html>gateway</html>", content_type="text/html")
        case Drip(every_s):
            return await _drip(request, every_s)
        case Stall():
            await asyncio.Event().wait()
        case Hang() if request.transport is not None:
            request.transport.close()
    return web.Response()


def completion(said: Say, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """OpenAI's chat completion object."""
    message: dict[str, JsonValue] = {"role": "assistant", "content": said.text}
    choice: dict[str, JsonValue] = {"index": 0, "message": message, "finish_reason": said.finish_reason}
    return {**_head(body, "chat.completion"), "choices": [choice], "usage": _usage(said)}


def text_completion(said: Say, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """OpenAI's completion object."""
    choice: dict[str, JsonValue] = {"index": 0, "text": said.text, "finish_reason": said.finish_reason}
    return {**_head(body, "text_completion"), "choices": [choice], "usage": _usage(said)}


async def _stream(request: web.Request, body: dict[str, JsonValue], said: Say) -> web.StreamResponse:
    """A word an event, all at once; the usage at the end if the request wants it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    events = _events(body, said) if request.path == _CHAT else _text_events(body, said)
    await response.write(b"".join([*events, *_usage_event(body, said)]) + b"data: [DONE]\n\n")
    return response


def _events(body: dict[str, JsonValue], said: Say) -> Iterator[bytes]:
    head = _head(body, "chat.completion.chunk")
    deltas: list[JsonValue] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _PIECE.findall(said.text)]
    for delta in deltas:
        yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": said.finish_reason}]})


def _text_events(body: dict[str, JsonValue], said: Say) -> Iterator[bytes]:
    head = _head(body, "text_completion")
    pieces = _PIECE.findall(said.text) or [""]
    for number, piece in enumerate(pieces, start=1):
        reason = said.finish_reason if number == len(pieces) else None
        yield _event({**head, "choices": [{"index": 0, "text": piece, "finish_reason": reason}]})


def _usage_event(body: dict[str, JsonValue], said: Say) -> Iterator[bytes]:
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        head = _head(body, "chat.completion.chunk")
        yield _event({**head, "choices": [], "usage": _usage(said)})


async def _drip(request: web.Request, every_s: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(every_s)


def _head(body: dict[str, JsonValue], kind: str) -> dict[str, JsonValue]:
    return {"id": "chatcmpl-1", "object": kind, "created": 0, "model": body.get("model") or MODEL}


def _usage(said: Say) -> dict[str, JsonValue]:
    total = said.prompt_tokens + said.completion_tokens
    return {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "total_tokens": total,
    }


def _event(value: dict[str, JsonValue]) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _dump(value: dict[str, JsonValue]) -> bytes:
    return _encode(value).encode()
