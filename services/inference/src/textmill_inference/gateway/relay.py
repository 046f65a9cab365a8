"""Carries an exchange to an engine and the answer back as it comes: bytes unchanged, streams piece by piece.

A request whose engine fails before the first byte of its answer was sent is sent again, until ``hold_s`` is over; after
the first byte it can't be. A slow client slows its engine's connection down; a client that leaves ends it.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence

from textmill.http1 import ConnectFailed, ConnectionLost, Incoming
from textmill_inference.gateway.exchange import CLIENT_LEFT, Exchange
from textmill_inference.gateway.openai_errors import OpenAIError, error_event
from textmill_inference.gateway.pools import Pools
from textmill_inference.gateway.ports import Routes, Upstream

_TRIES = 8
_LOOK_AT_FIRST_S, _LOOK_AT_LAST_S = 0.02, 0.25
_READ_WHOLE = 1024 * 1024
"""A plain answer up to this size is sent only when all of it is there, so that it can be asked for again."""

_FAILED_STREAM = b'data: {"error"'
_OURS = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"date", b"server", b"x-request-id",
    )
)  # fmt: skip
"""Headers that belong to one connection (RFC 9110, 7.6.1), or that this server sets itself."""


class Relay:
    """``routes`` is asked anew for each try. Belongs to one event loop."""

    def __init__(self, routes: Routes, pools: Pools, hold_s: float) -> None:
        self._routes = routes
        self._pools = pools
        self._hold_s = hold_s

    async def carry(self, exchange: Exchange) -> None:
        """Returns when the answer was sent, or as much of it as there was.

        Raises:
            OpenAIError: nothing was sent.
        """
        sample, deadline = random.random(), exchange.began + self._hold_s
        for attempt in range(_TRIES):
            upstream = await self._ready(exchange, sample, deadline)
            if await self.attempt(exchange, upstream):
                return
            # The engine can still look ready here: it has only just died.
            upstream.suspect()
            exchange.series.retries += 1
            await asyncio.sleep(min(2.0, 0.1 * 2**attempt))
        raise _unavailable(exchange.asked.model, "it failed each time the request was sent")

    async def _ready(self, exchange: Exchange, sample: float, deadline: float) -> Upstream:
        """Whoever answers for the model now; looks again and again while that is nobody.

        Raises:
            OpenAIError: 503 when time is up; 404 when the model is no longer served.
        """
        pause_s = _LOOK_AT_FIRST_S
        while True:
            upstream = self._upstream(exchange.asked.model, sample)
            if upstream.ready:
                return upstream
            if time.perf_counter() >= deadline:
                raise _unavailable(exchange.asked.model, upstream.trouble)
            await asyncio.sleep(pause_s)
            pause_s = min(_LOOK_AT_LAST_S, pause_s * 1.5)

    def _upstream(self, model: str, sample: float) -> Upstream:
        route = self._routes().get(model)
        if route is None:
            raise not_served(model, self._routes())
        return route.choose(sample)

    async def attempt(self, exchange: Exchange, upstream: Upstream) -> bool:
        """One try. False if the engine turned out to be dying and nothing was sent to the client."""
        incoming: Incoming | None = None
        upstream.in_flight += 1
        exchange.upstream = upstream.name
        complete, status = False, 503
        try:
            body = exchange.asked.named(upstream.model)
            incoming = await self._pools.ask(upstream.url, exchange.path, exchange.headers, body)
            status = incoming.status
            complete = await self._answer(exchange, upstream, incoming)
            return complete
        except (ConnectFailed, ConnectionLost):
            if exchange.started:
                await self._break_off(exchange, upstream)
            return exchange.started
        except asyncio.CancelledError:
            status = CLIENT_LEFT if exchange.abandoned else status
            raise
        finally:
            if incoming is not None:
                incoming.close()
            upstream.in_flight -= 1
            upstream.note(exchange.outcome(complete, status))

    async def _answer(self, exchange: Exchange, upstream: Upstream, incoming: Incoming) -> bool:
        streamed, headers = passed(incoming.headers, exchange.request_id)
        data = await (incoming.read() if streamed else incoming.read_all(_READ_WHOLE))
        failed = incoming.status >= 500 or (streamed and data.startswith(_FAILED_STREAM))
        if failed and not await self._pools.healthy(upstream.url):
            return False
        await exchange.start(incoming.status, headers, streamed)
        while not incoming.whole or incoming.unread:
            await exchange.piece(data, True)
            data = await incoming.read()
            if data:
                exchange.piece_came(data)
        await exchange.piece(data, False)
        return True

    async def _break_off(self, exchange: Exchange, upstream: Upstream) -> None:
        """Say within the stream that it is incomplete. Without ``[DONE]``, OpenAI clients raise the error."""
        upstream.suspect()
        exchange.series.broken += 1
        if exchange.streamed:
            message = f"the engine of {exchange.asked.model!r} failed in the middle of this answer; ask again"
            await end_with(exchange, error_event(message))


async def end_with(exchange: Exchange, event: bytes) -> None:
    """An event of ours at the end of a stream, on a line of its own even if the engine's last one is half."""
    half = not exchange.count.tail.endswith(b"\n\n")
    exchange.finished = True
    await exchange.send({"type": "http.response.body", "body": b"\n\n" + event if half else event})


def passed(headers: Sequence[tuple[bytes, bytes]], request_id: str) -> tuple[bool, list[tuple[bytes, bytes]]]:
    """Whether the answer is a stream, and the headers of its content."""
    streamed, kept = False, [(b"x-request-id", request_id.encode())]
    for header in headers:
        if header[0] not in _OURS:
            kept.append(header)
            if header[0] == b"content-type":
                streamed = header[1].startswith(b"text/event-stream")
    return streamed, kept


def not_served(model: str, served: Iterable[str]) -> OpenAIError:
    names = ", ".join(sorted(served)) or "none yet"
    message = f"the model {model!r} does not exist here; served are: {names}"
    return OpenAIError(404, message, param="model", code="model_not_found")


def _unavailable(model: str, why: str) -> OpenAIError:
    message = f"the engine of {model!r} is not available now ({why}); try again soon"
    return OpenAIError(503, message, kind="server_error", code="engine_unavailable", model=model, retry_after_s=5)
