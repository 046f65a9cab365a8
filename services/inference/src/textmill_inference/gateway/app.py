"""OpenAI's routes in front of the engines, as raw ASGI around the control app: the hot path.

Says who asks and for what, waits for admission, and has the relay do the rest. Knows neither vLLM nor where engines,
keys and quotas come from.
"""

import asyncio
import gc
import json
import ssl
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textmill_inference.gateway.departure import Departure
from textmill_inference.gateway.exchange import CLIENT_LEFT, Exchange
from textmill_inference.gateway.keys import Caller, KeyRing
from textmill_inference.gateway.metrics import METRICS, GatewayMetrics
from textmill_inference.gateway.openai_errors import OpenAIError, error_event
from textmill_inference.gateway.pools import Pools
from textmill_inference.gateway.ports import Admission, Permit, Recorder, Routes
from textmill_inference.gateway.relay import Relay, end_with, not_served
from textmill_inference.gateway.request import forwarded, parse, read_body
from textmill_inference.gateway.shadow import Shadows

_COMPLETIONS = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
_MODELS = "/v1/models"
_REFUSED = tuple(
    f"/v1/{name}" for name in ("embeddings", "responses", "moderations", "images", "audio", "realtime", "assistants")
)
_SHUTTING_DOWN = "this gateway is shutting down; ask again"


class Gateway:
    """``app`` gets every request that isn't one of OpenAI's routes. ``hold_s`` bounds the wait for an engine.

    Without ``admission`` every request goes on at once; without ``recorder`` nothing is kept.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Routes,
        keys: KeyRing,
        hold_s: float = 120.0,
        *,
        admission: Admission | None = None,
        recorder: Recorder | None = None,
        metrics: GatewayMetrics = METRICS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._app = app
        self._routes = routes
        self._keys = keys
        self._admission = admission
        self._recorder = recorder
        self._metrics = metrics
        self._pools = Pools(tls)
        self._relay = Relay(routes, self._pools, hold_s)
        self._shadows = Shadows(self._relay, recorder)
        self._since = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path in _COMPLETIONS:
            await self._complete(scope, receive, send)
        elif scope["type"] == "http" and (path == _MODELS or path.startswith((_MODELS + "/", *_REFUSED))):
            await self._other(scope, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, self._lifespan(send))
        else:
            await self._app(scope, receive, send)

    # -- completions -----------------------------------------------------------------------------------------------

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, request_id, group = _COMPLETIONS[scope["path"]], "", ""
        try:
            request_id, headers = forwarded(scope)
            caller = self._keys.identify(scope["headers"])
            group = caller.group
            _expect("POST", scope)
            asked = parse(await read_body(scope, receive))
            if asked.model not in self._routes():
                raise not_served(asked.model, self._models_of(caller))
            caller.check_model(asked.model)
        except OpenAIError as error:
            self._metrics.of(route, error.model, group).statuses[error.status] += 1
            await error.answer(send, request_id)
            return
        series = self._metrics.of(route, asked.model, group)
        keep = self._recorder.answer_bytes if self._recorder and self._recorder.wants(caller, asked.model) else 0
        exchange = Exchange(route, scope["path"], asked, caller, series, request_id, headers, send, keep)
        await self._exchange(exchange, receive)

    async def _exchange(self, exchange: Exchange, receive: Receive) -> None:
        """Until it is answered or the client has gone; then the upstream request is cancelled with this task."""
        task = asyncio.current_task()
        assert task is not None
        exchange.series.in_flight += 1
        permit: Permit | None = None
        departure = Departure(receive, exchange, task)
        try:
            permit = await self._admitted(exchange)
            self._copy(exchange)
            await self._relay.carry(exchange)
        except asyncio.CancelledError:
            if not exchange.abandoned:
                await _say_goodbye(exchange)
                raise
            task.uncancel()
        except OpenAIError as error:
            exchange.finished, exchange.status = True, error.status
            await error.answer(exchange.send, exchange.request_id)
        finally:
            departure.forget()
            self._settle(exchange, permit)

    async def _admitted(self, exchange: Exchange) -> Permit | None:
        if self._admission is None:
            return None
        asked = exchange.asked
        permit = self._admission.try_enter(exchange.caller, asked.model, asked.cost)
        return permit or await self._admission.enter(exchange.caller, asked.model, asked.cost)

    def _copy(self, exchange: Exchange) -> None:
        route = self._routes().get(exchange.asked.model)
        shadow = route.take_shadow() if route is not None else None
        if shadow is not None:
            self._shadows.copy(exchange, shadow)

    def _settle(self, exchange: Exchange, permit: Permit | None) -> None:
        if exchange.abandoned:
            exchange.status = CLIENT_LEFT
        exchange.series.in_flight -= 1
        tokens = exchange.settle()
        if permit is not None:
            if exchange.upstream:
                failed = exchange.status >= 400 and exchange.status != CLIENT_LEFT
                permit.release(0 if failed and tokens is None else tokens)
            else:
                permit.give_back()
        if exchange.keep and self._recorder is not None:
            self._recorder.record(exchange.exchanged())

    # -- all else --------------------------------------------------------------------------------------------------

    async def _other(self, scope: Scope, send: Send) -> None:
        path = scope["path"]
        route = (
            _MODELS if path.startswith(_MODELS) else next(refused for refused in _REFUSED if path.startswith(refused))
        )
        status, group, request_id = 200, "", forwarded(scope)[0]
        try:
            caller = self._keys.identify(scope["headers"])
            group = caller.group
            if route != _MODELS:
                raise _unsupported(path)
            _expect("GET", scope)
            await _send_json(send, self._models(path, caller), request_id)
        except OpenAIError as error:
            status = error.status
            await error.answer(send, request_id)
        self._metrics.of(route, "", group).statuses[status] += 1

    def _models(self, path: str, caller: Caller) -> dict[str, object]:
        names = self._models_of(caller)
        if path in (_MODELS, _MODELS + "/"):
            return {"object": "list", "data": [self._entry(name) for name in names]}
        name = path[len(_MODELS) + 1 :]
        if name not in names:
            raise not_served(name, names)
        return self._entry(name)

    def _models_of(self, caller: Caller) -> list[str]:
        return [name for name in sorted(self._routes()) if caller.may_use(name)]

    def _entry(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "textmill"}

    def _lifespan(self, send: Send) -> Send:
        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                # What the process has loaded until now stays: without it a collection takes 0.1 s less.
                gc.collect()
                gc.freeze()
            elif message["type"].startswith("lifespan.shutdown"):
                self._shadows.close()
                self._pools.close()
            await send(message)

        return tell


async def _say_goodbye(exchange: Exchange) -> None:
    """The server ends before the answer did: what the client gets must not look whole."""
    if exchange.finished:
        return
    if not exchange.started:
        error = OpenAIError(
            503, _SHUTTING_DOWN, kind="server_error", code="shutting_down", model=exchange.asked.model, retry_after_s=1
        )
        exchange.finished, exchange.status = True, error.status
        await error.answer(exchange.send, exchange.request_id)
    elif exchange.streamed:
        await end_with(exchange, error_event(_SHUTTING_DOWN, "shutting_down"))


async def _send_json(send: Send, value: dict[str, object], request_id: str) -> None:
    body = json.dumps(value).encode()
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _expect(method: str, scope: Scope) -> None:
    if scope["method"] != method:
        message = f"{scope['path']} takes {method}, not {scope['method']}"
        raise OpenAIError(405, message, code="method_not_allowed", allow=method)


def _unsupported(path: str) -> OpenAIError:
    if path.startswith("/v1/embeddings"):
        message = "textmill serves text generation, not embeddings: ask an embedding server"
    else:
        message = f"{path} is not served here: ask /v1/chat/completions or /v1/completions"
    return OpenAIError(400, message, code="unsupported_endpoint")
