"""An HTTP/1.1 client for thousands of small exchanges at once with one server: one connection an exchange.

For the hot paths that aiohttp's client is too slow for: asking an LLM, passing its answers on, measuring one. It pools
connections, speaks TLS and reads bodies of any framing, whole or as they come; it knows no redirects, cookies,
compression or proxies, and no timeouts but the one for connecting: the caller wraps an exchange in ``asyncio.timeout``,
and a cancelled exchange closes its connection.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from textmill.http1_connection import ConnectFailed, Connection, ConnectionLost, Incoming

__all__ = ["ConnectFailed", "ConnectionLost", "HttpPool", "Incoming", "Response"]

_RESOLVED_FOR_S = 30.0
Address = tuple[str, int]


@dataclass(frozen=True)
class Response:
    """``headers`` have lower-case names; of a repeated one the last counts. ``body`` ends past ``max_bytes``."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpPool:
    """Connections to the server of ``url``, kept for ``idle_s`` after an exchange. Belongs to one event loop.

    Most servers drop an idle connection after 5 s; ours must go first, or an exchange meets a closed one. ``tls``
    replaces the system's trusted authorities for an https URL.
    """

    def __init__(
        self, url: str, idle_s: float = 4.0, connect_timeout_s: float = 10.0, tls: ssl.SSLContext | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not a URL of an HTTP server: {url!r}")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._host_header = parts.netloc.rpartition("@")[2].encode()
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[Connection] = deque()
        self._closed = False
        self._resolving = asyncio.Lock()
        self._addresses: list[Address] = []
        self._resolved_at = float("-inf")

    @property
    def idle(self) -> int:
        """Connections that wait for an exchange."""
        return len(self._idle)

    async def post(self, path: str, headers: bytes, body: bytes, max_bytes: int) -> Response:
        """One exchange. ``headers`` are whole lines, each with its CRLF, without Host and Content-Length.

        Raises:
            ConnectFailed, ConnectionLost.
        """
        return await self._whole(await self.stream(b"POST", path, headers, body), max_bytes)

    async def get(self, path: str, headers: bytes, max_bytes: int) -> Response:
        """As ``post``."""
        return await self._whole(await self.stream(b"GET", path, headers, b""), max_bytes)

    async def stream(self, method: bytes, path: str, headers: bytes, body: bytes) -> Incoming:
        """One exchange, whose response is read as it comes; returns when its head has come. The caller closes it.

        Raises:
            ConnectFailed, ConnectionLost.
        """
        connection = self._reusable() or await self._connect()
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n"
        incoming = connection.begin(head % (method, path.encode(), self._host_header, headers, len(body)), body)
        try:
            await incoming.until_head()
        except BaseException as exc:
            incoming.close()
            if isinstance(exc, ConnectionLost) and exc.stale:
                self._drop_idle()  # the others have been idle for longer
            raise
        return incoming

    def close(self) -> None:
        """Exchanges under way go on, and their connections are closed after them."""
        self._closed = True
        self._drop_idle()

    async def _whole(self, incoming: Incoming, max_bytes: int) -> Response:
        try:
            body = await incoming.read_all(max_bytes)
        finally:
            incoming.close()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in incoming.headers}
        return Response(incoming.status, headers, body)

    # -- connections -----------------------------------------------------------------------------------------------

    def _keep(self, connection: Connection) -> None:
        """It is free; those that have waited too long for another exchange go."""
        if self._closed:
            connection.abort()
            return
        now = connection.idle_since = time.monotonic()
        self._idle.append(connection)
        oldest = now - self._idle_s
        while self._idle[0].idle_since < oldest:
            self._idle.popleft().abort()

    def _reusable(self) -> Connection | None:
        """The one used last: those before it may go idle long enough to be dropped."""
        oldest = time.monotonic() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    async def _connect(self) -> Connection:
        error: OSError | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                for host, port in await self._resolved():
                    try:
                        return await self._connect_to(host, port)
                    except OSError as exc:
                        error = exc
        except TimeoutError:
            raise ConnectFailed(f"no connection within {self._connect_timeout_s:g} s") from None
        except OSError as exc:
            error = exc
        self._resolved_at = float("-inf")
        raise ConnectFailed(str(error)) from error

    async def _connect_to(self, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._keep), host, port, ssl=self._tls, server_hostname=self._host if self._tls else None
        )
        return connection

    async def _resolved(self) -> list[Address]:
        async with self._resolving:
            if time.monotonic() - self._resolved_at > _RESOLVED_FOR_S:
                self._addresses = await _resolve(self._host, self._port)
                self._resolved_at = time.monotonic()
            return self._addresses


async def _resolve(host: str, port: int) -> list[Address]:
    try:
        ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(str(info[4][0]), int(info[4][1])) for info in found]
    return [(host, port)]
