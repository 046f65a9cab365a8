"""Lets calls through to one endpoint: so many at a time, and none while the endpoint has asked for a pause."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Admission:
    """Belongs to one event loop. A permit covers one try; waiting calls hold none."""

    def __init__(self, concurrency: int) -> None:
        self._permits = asyncio.Semaphore(concurrency)
        self._open_at = 0.0

    def hold(self, seconds: float) -> None:
        """Let nobody in for so long from now. Never shortens a hold that is already on."""
        self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)

    @asynccontextmanager
    async def permit(self) -> AsyncIterator[None]:
        async with self._permits:
            while (wait_s := self._open_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait_s)
            yield
