"""One HTTP/1.1 connection of ``textmill.http1``, and a response as it comes over it.

Reads at most ``_READ_AHEAD`` bytes further than its reader has got, so that a slow reader slows the server down
instead of filling the memory.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import httptools

_READ_AHEAD = 256 * 1024
_COPIED_UP_TO = 64 * 1024
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 30, 10, 3
Header = tuple[bytes, bytes]


class ConnectFailed(OSError):
    """No connection, so nothing was sent."""


class ConnectionLost(OSError):
    """The connection broke, or what came isn't HTTP, before the response was whole: the request may have been read.

    ``stale`` says that it had served an exchange before and not one byte came this time: most likely the server had
    closed it for being idle, and the request is worth sending again at once.
    """

    def __init__(self, message: str, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class Incoming:
    """A response whose head has come. Belongs to one task; ``close`` it when done, however it ended.

    ``headers`` have their names in lower case, in the order they came. ``whole`` says that all of it has come.
    """

    __slots__ = ("_connection", "_error", "_parts", "_paused", "_size", "_waiter", "headers", "status", "whole")

    def __init__(self, connection: "Connection") -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.whole = False
        self._connection: Connection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._error: ConnectionLost | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def unread(self) -> bool:
        """Whether something has come that was not read yet."""
        return bool(self._parts)

    async def read(self) -> bytes:
        """What has come since the last time, waiting for some; empty at the end.

        Raises:
            ConnectionLost: what came before it was handed out first.
        """
        while not self._parts:
            if self.whole:
                return b""
            await self._wait()
        parts = self._parts
        self._parts, self._size = [], 0
        if self._paused:
            self._paused = False
            if self._connection is not None:
                self._connection.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_all(self, max_bytes: int) -> bytes:
        """The rest of it; more than ``max_bytes`` if there is more, and then the rest isn't awaited.

        Raises:
            ConnectionLost.
        """
        parts, room = [], max_bytes
        while room >= 0 and (data := await self.read()):
            parts.append(data)
            room -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def until_head(self) -> None:
        """Raises ``ConnectionLost``."""
        while not self.status:
            await self._wait()

    def close(self) -> None:
        """If it isn't whole, the connection is closed, which tells the server to stop."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        if self._connection is None:
            raise ConnectionLost("this response was closed")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # -- what the connection calls ---------------------------------------------------------------------------------

    def take_head(self, status: int) -> None:
        self.status = status
        self._wake()

    def take(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > _READ_AHEAD and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause_reading()
        self._wake()

    def end(self, error: ConnectionLost | None = None) -> None:
        self.whole, self._error = error is None, error
        self._connection = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, and the response that is being read from it. ``freed`` gets it when it is fit for another."""

    def __init__(self, freed: "Callable[[Connection], None]") -> None:
        self.idle_since = 0.0
        self._freed = freed
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._used = False
        self._heard = False
        self._parser: httptools.HttpResponseParser | None = None
        self._incoming: Incoming | None = None

    @property
    def reusable(self) -> bool:
        """Between exchanges, and fit for another."""
        return not self._closed and self._incoming is None

    def begin(self, head: bytes, body: bytes) -> Incoming:
        """Send a request. Raises ``ConnectionLost``."""
        if self._transport is None or self._closed:
            raise ConnectionLost("the server closed the connection", stale=self._used)
        self._parser, self._heard = httptools.HttpResponseParser(self), False
        self._incoming = Incoming(self)
        if len(body) <= _COPIED_UP_TO:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return self._incoming

    def abort(self) -> None:
        self._closed, self._incoming, self._parser = True, None, None
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._closed:
            self._transport.resume_reading()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own isn't a subclass
        _probe_when_silent(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # between exchanges nothing is due
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._lose(f"the response isn't HTTP: {exc}")
            self.abort()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is not None:
            self._incoming.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._incoming is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim response, such as 103: the real one follows
            self._incoming.headers.clear()
        else:
            self._incoming.take_head(status)

    def on_body(self, data: bytes) -> None:
        if self._incoming is not None:
            self._incoming.take(data)

    def on_message_complete(self) -> None:
        incoming, parser = self._incoming, self._parser
        if incoming is None or parser is None:  # a second response, to nothing
            self.abort()
            return
        if not incoming.status:  # an interim response has ended
            return
        self._closed = self._closed or not parser.should_keep_alive()
        self._incoming, self._parser, self._used = None, None, True
        self.resume_reading()
        incoming.end()
        if self._closed:
            self.abort()
        else:
            self._freed(self)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _end(self, exc: Exception | None = None) -> None:
        """The server sends no more. A body without a length and without chunks ends just so."""
        self._closed = True
        incoming = self._incoming
        if incoming is not None and incoming.status and exc is None:
            framed = {name for name, _ in incoming.headers} & {b"content-length", b"transfer-encoding"}
            if not framed:
                self._incoming = None
                incoming.end()
        self._lose(str(exc) if exc else "the server closed the connection")

    def _lose(self, why: str) -> None:
        if self._incoming is not None:
            self._incoming.end(ConnectionLost(why, stale=self._used and not self._heard))
            self._incoming = None


def _probe_when_silent(found: object) -> None:
    """A host that vanished sends no reset: without probes its exchanges would hang for ever."""
    if not isinstance(found, socket.socket) and not hasattr(found, "setsockopt"):
        return
    wire = cast(socket.socket, found)
    if wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_AFTER_S),
        ("TCP_KEEPINTVL", _PROBE_EVERY_S),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, name):
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
