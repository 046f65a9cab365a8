"""OpenAI's routes in front of the engines, as raw ASGI around the control app: the hot path.

Routes by model name, passes bytes through unchanged, streams included, and cancels upstream when the client leaves.
A request whose engine fails before the first byte of its answer is sent again, until ``hold_s`` is over; after the
first byte it can't be. Knows neither vLLM nor where engines come from.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textmill.contracts.base import new_id
from textmill_inference.gateway import metrics
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.openai_errors import OpenAIError, error_event
from textmill_inference.gateway.usage import count_tokens

_COMPLETIONS = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_REFUSED = {"/v1/embeddings"}
_MODELS = "/v1/models"
_LARGEST_BODY = 32 * 1024 * 1024
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError, asyncio.TimeoutError)
_TRIES = 8


class Upstream(Protocol):
    """What the gateway knows of an engine."""

    @property
    def name(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def trouble(self) -> str: ...
    def suspect(self) -> None: ...


Upstreams = Callable[[], Mapping[str, Upstream]]


@dataclass
class _Exchange:
    """One request and how far its answer has come."""

    route: str
    path: str
    upstream: Upstream
    body: bytes
    headers: dict[str, str]
    send: Send
    began: float
    status: int = 499
    started: bool = False
    finished: bool = False
    abandoned: bool = False


class Gateway:
    """``app`` gets every request that isn't one of OpenAI's routes. ``hold_s`` bounds the wait for an engine."""

    def __init__(self, app: ASGIApp, upstreams: Upstreams, keys: KeyRing, hold_s: float = 120.0) -> None:
        self._app = app
        self._upstreams = upstreams
        self._keys = keys
        self._hold_s = hold_s
        self._session: aiohttp.ClientSession | None = None
        self._since = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._closing(send))
            return
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path in _COMPLETIONS or path in _REFUSED or path.startswith(_MODELS)):
            await self._app(scope, receive, send)
            return
        try:
            self._keys.check(scope["headers"])
            await self._route(scope, receive, send)
        except OpenAIError as error:
            route = _COMPLETIONS.get(path, path if path in _REFUSED else _MODELS)
            metrics.REQUESTS.labels(route, error.model, str(error.status)).inc()
            await error.answer(send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in _REFUSED:
            raise OpenAIError(
                400,
                "textmill serves text generation, not embeddings: ask an embedding server",
                code="unsupported_endpoint",
            )
        if path.startswith(_MODELS):
            _expect("GET", method, path)
            await self._models(path, send)
            return
        _expect("POST", method, path)
        body = await _read(receive)
        exchange = _Exchange(
            _COMPLETIONS[path], path, self._find(_model_of(body)), body, _forwarded(scope), send, time.perf_counter()
        )
        await self._exchange(exchange, receive)

    def _find(self, model: str) -> Upstream:
        upstreams = self._upstreams()
        if model not in upstreams:
            served = ", ".join(sorted(upstreams)) or "none yet"
            raise OpenAIError(
                404,
                f"the model {model!r} does not exist here; served are: {served}",
                param="model",
                code="model_not_found",
            )
        return upstreams[model]

    async def _models(self, path: str, send: Send) -> None:
        def entry(name: str) -> dict[str, object]:
            return {"id": name, "object": "model", "created": self._since, "owned_by": "textmill"}

        if path in (_MODELS, _MODELS + "/"):
            value: dict[str, object] = {"object": "list", "data": [entry(name) for name in sorted(self._upstreams())]}
        else:
            value = entry(self._find(path[len(_MODELS) + 1 :]).name)
        metrics.REQUESTS.labels(_MODELS, "", "200").inc()
        await send(_head(200, [(b"content-type", b"application/json")]))
        await send({"type": "http.response.body", "body": json.dumps(value).encode()})

    # -- one exchange ----------------------------------------------------------------------------------------------

    async def _exchange(self, exchange: _Exchange, receive: Receive) -> None:
        """Relay until it is answered or the client has gone; then the upstream request is cancelled with this task."""
        name = exchange.upstream.name
        task = asyncio.current_task()
        assert task is not None

        def gone(watcher: "asyncio.Future[None]") -> None:
            if not exchange.finished and not watcher.cancelled():
                exchange.abandoned = True
                task.cancel()

        watcher = asyncio.ensure_future(_until_gone(receive))
        watcher.add_done_callback(gone)
        metrics.IN_FLIGHT.labels(name).inc()
        try:
            await self._relay(exchange)
        except asyncio.CancelledError:
            if not exchange.abandoned:
                raise
            task.uncancel()
        except OpenAIError as error:
            exchange.finished, exchange.status = True, error.status
            await error.answer(exchange.send)
        finally:
            exchange.finished = True
            watcher.cancel()
            metrics.IN_FLIGHT.labels(name).dec()
            metrics.REQUESTS.labels(exchange.route, name, str(exchange.status)).inc()
            metrics.REQUEST_SECONDS.labels(exchange.route, name).observe(time.perf_counter() - exchange.began)

    async def _relay(self, exchange: _Exchange) -> None:
        """Try, and try again while nothing was sent yet and time is left."""
        upstream, deadline = exchange.upstream, exchange.began + self._hold_s
        for attempt in range(_TRIES):
            await self._until_ready(upstream, deadline)
            try:
                if await self._attempt(exchange):
                    return
            except _LOST:
                if exchange.started:
                    await self._break_off(exchange)
                    return
            # The engine can still look ready here: it has only just died.
            upstream.suspect()
            metrics.RETRIES.labels(upstream.name).inc()
            await asyncio.sleep(min(2.0, 0.1 * 2**attempt))
        raise _unavailable(upstream, "it failed each time the request was sent")

    async def _until_ready(self, upstream: Upstream, deadline: float) -> None:
        while not upstream.ready:
            if time.perf_counter() >= deadline:
                raise _unavailable(upstream, upstream.trouble)
            await asyncio.sleep(0.05)

    async def _attempt(self, exchange: _Exchange) -> bool:
        """Send it upstream and the answer down. False if the engine turned out to be dying and nothing was sent."""
        url = exchange.upstream.url + exchange.path
        async with self._http().post(
            url, data=exchange.body, headers=exchange.headers, allow_redirects=False
        ) as answer:
            streaming = answer.content_type == "text/event-stream"
            chunk = await answer.content.readany() if streaming else await answer.read()
            failed = answer.status >= 500 or chunk.startswith(b'data: {"error"')
            if failed and await self._is_dying(exchange.upstream):
                return False
            exchange.started, exchange.status = True, answer.status
            await exchange.send(_head(answer.status, _passed(answer)))
            before, last = b"", chunk
            if streaming:
                metrics.TTFT_SECONDS.labels(exchange.upstream.name).observe(time.perf_counter() - exchange.began)
                while chunk:
                    await exchange.send({"type": "http.response.body", "body": chunk, "more_body": True})
                    before, last = last, chunk
                    chunk = await answer.content.readany()
            exchange.finished = True
            await exchange.send({"type": "http.response.body", "body": chunk})
            count_tokens(exchange.upstream.name, before + last)
            return True

    async def _is_dying(self, upstream: Upstream) -> bool:
        """A 5xx can be the request's fault or the engine's end; its health route knows which."""
        try:
            async with self._http().get(upstream.url + "/health", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                return answer.status != 200
        except _LOST:
            return True

    async def _break_off(self, exchange: _Exchange) -> None:
        """Say within the stream that it is incomplete. Without ``[DONE]``, OpenAI clients raise the error."""
        exchange.upstream.suspect()
        metrics.BROKEN_STREAMS.labels(exchange.upstream.name).inc()
        exchange.finished = True
        message = f"the engine of {exchange.upstream.name!r} failed in the middle of this answer; ask again"
        await exchange.send({"type": "http.response.body", "body": error_event(message)})

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                read_bufsize=1024 * 1024,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            )
        return self._session

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown") and self._session is not None:
                await self._session.close()
            await send(message)

        return closing


def _unavailable(upstream: Upstream, why: str) -> OpenAIError:
    message = f"the engine of {upstream.name!r} is not available now ({why}); try again soon"
    return OpenAIError(
        503, message, kind="server_error", code="engine_unavailable", model=upstream.name, retry_after_s=5
    )


def _expect(method: str, given: str, path: str) -> None:
    if given != method:
        raise OpenAIError(405, f"{path} takes {method}, not {given}", code="method_not_allowed")


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise OpenAIError(400, "the request ended before its body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LARGEST_BODY:
            raise OpenAIError(413, f"the body is larger than {_LARGEST_BODY} bytes", code="body_too_large")
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _model_of(body: bytes) -> str:
    try:
        request = json.loads(body)
    except ValueError as exc:
        raise OpenAIError(400, f"the body is no JSON: {exc}", code="invalid_json") from exc
    model = request.get("model") if isinstance(request, dict) else None
    if not isinstance(model, str) or not model:
        raise OpenAIError(
            400, "the body must be an object with the string 'model'", param="model", code="missing_model"
        )
    return model


def _forwarded(scope: Scope) -> dict[str, str]:
    given = dict(scope["headers"])
    headers = {"Content-Type": "application/json", "X-Request-Id": given.get(b"x-request-id", b"").decode("latin-1")}
    if not headers["X-Request-Id"]:
        headers["X-Request-Id"] = new_id("req")
    if b"traceparent" in given:
        headers["traceparent"] = given[b"traceparent"].decode("latin-1")
    return headers


def _passed(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The headers that belong to the content; those of the connection are this server's own."""
    kept = [(b"content-type", answer.headers.get("Content-Type", "application/json").encode("latin-1"))]
    if "Content-Length" in answer.headers:
        kept.append((b"content-length", answer.headers["Content-Length"].encode()))
    request_id = answer.request_info.headers.get("X-Request-Id", "")
    return [*kept, (b"x-request-id", request_id.encode("latin-1"))]


def _head(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}
