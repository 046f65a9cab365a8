"""What a gateway does beside answering: looks for new and revoked keys, exchanges quota use, asks engines for
their load, sets gauges.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.engine_watch import EngineWatch
from textmill_inference.gateway.key_watch import KeyWatch
from textmill_inference.gateway.usage_exchange import UsageExchange

log = logging.getLogger(__name__)


_ENGINES_EVERY_S = 1.0


@dataclass
class Upkeep:
    """A round every ``every_s``, a look at the engines each second; all on the loop that serves, so without a lock."""

    watch: KeyWatch
    exchange: UsageExchange
    admission: Admission
    engines: EngineWatch | None = None
    every_s: float = 2.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks once before it lets the block begin, and goes on until its end."""
        await _safely(self.round)
        tasks = [asyncio.create_task(_every(self.every_s, self.round), name="upkeep")]
        if self.engines is not None:
            tasks.append(asyncio.create_task(_every(_ENGINES_EVERY_S, self.engines.tick), name="engine watch"))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await _safely(self.round)

    async def round(self) -> None:
        await self.watch.tick()
        if self.watch.limited:
            await self.exchange.tick()
        self.admission.publish()


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await _safely(work)


async def _safely(work: Callable[[], Awaitable[None]]) -> None:
    """Errors of the store are handled where they happen; any other must not end the upkeep."""
    try:
        await work()
    except Exception:
        log.exception("a round of the upkeep failed")
