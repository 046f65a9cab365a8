"""Connections to the engines: one pool for each address, made when it is first asked."""

import asyncio
import ssl
from urllib.parse import urlsplit

from textmill.http1 import ConnectionLost, HttpPool, Incoming

_MOST_POOLS = 64
_CONNECT_WITHIN_S = 5.0
_HEALTH_WITHIN_S = 5.0


class Pools:
    """Belongs to one event loop. ``tls`` replaces the system's authorities for engines at https URLs."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._pools: dict[str, tuple[HttpPool, str]] = {}

    async def ask(self, url: str, path: str, headers: bytes, body: bytes) -> Incoming:
        """POST; returns with the answer's head. A connection that the engine had closed meanwhile is replaced by a new
        one, which nobody needs to know of.

        Raises:
            ConnectFailed, ConnectionLost.
        """
        pool, prefix = self._pools.get(url) or self._open(url)
        try:
            return await pool.stream(b"POST", prefix + path, headers, body)
        except ConnectionLost as lost:
            if not lost.stale:
                raise
        return await pool.stream(b"POST", prefix + path, headers, body)

    async def healthy(self, url: str) -> bool:
        """What the engine's own health route says; no answer is a no."""
        pool, prefix = self._pools.get(url) or self._open(url)
        try:
            async with asyncio.timeout(_HEALTH_WITHIN_S):
                return (await pool.get(prefix + "/health", b"", 65_536)).status == 200
        except (OSError, TimeoutError):
            return False

    @property
    def idle(self) -> int:
        """Connections that wait for an exchange."""
        return sum(pool.idle for pool, _ in self._pools.values())

    def close(self) -> None:
        for pool, _ in self._pools.values():
            pool.close()
        self._pools.clear()

    def _open(self, url: str) -> tuple[HttpPool, str]:
        """An engine that is started anew has another port, so the oldest address goes when there are many."""
        if len(self._pools) >= _MOST_POOLS:
            self._pools.pop(next(iter(self._pools)))[0].close()
        made = HttpPool(url, connect_timeout_s=_CONNECT_WITHIN_S, tls=self._tls), urlsplit(url).path.rstrip("/")
        self._pools[url] = made
        return made
