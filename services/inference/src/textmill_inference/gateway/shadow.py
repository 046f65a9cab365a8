"""Copies of requests for a shadow: its answers are read, measured and recorded, and nobody waits for them."""

import asyncio

from textmill_inference.gateway.exchange import Exchange, discard
from textmill_inference.gateway.metrics import Series
from textmill_inference.gateway.ports import Recorder, Upstream
from textmill_inference.gateway.relay import Relay

_WITHIN_S = 600.0


class Shadows:
    """How many run at once is bounded where a shadow is handed out (``Route.take_shadow``)."""

    def __init__(self, relay: Relay, recorder: Recorder | None) -> None:
        self._relay = relay
        self._recorder = recorder
        self._running: set[asyncio.Task[None]] = set()

    def copy(self, exchange: Exchange, upstream: Upstream) -> None:
        """Ask ``upstream`` the same. Returns at once."""
        task = asyncio.create_task(self._ask(exchange, upstream))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        for task in list(self._running):
            task.cancel()

    async def _ask(self, exchange: Exchange, upstream: Upstream) -> None:
        copy = Exchange(
            exchange.route,
            exchange.path,
            exchange.asked,
            exchange.caller,
            Series(),  # a client's metrics are of what clients got
            exchange.request_id,
            exchange.headers,
            discard,
            exchange.keep,
        )
        outcome = "failed"
        try:
            async with asyncio.timeout(_WITHIN_S):
                if await self._relay.attempt(copy, upstream) and copy.finished and copy.status < 500:
                    outcome = "answered"
        except TimeoutError:
            outcome = "timeout"
        finally:
            exchange.series.shadows[outcome] += 1
            if copy.keep and self._recorder is not None:
                self._recorder.record(copy.exchanged(shadow=True))
