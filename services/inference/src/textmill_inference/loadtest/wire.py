"""The load generator's sockets: HTTP/1.1 on raw asyncio transports, one exchange at a time on each connection.

Dials one address only, follows no redirect, retries nothing: what goes wrong is the finding. Timeouts are the caller's
(``Wire.give_up``). Most servers drop a connection that was idle for 5 s; ours are dropped before, or a request would
meet a closed one and its error would be of our making.
"""

import asyncio
import errno
import os
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast

import httptools

from textmill.contracts.loadtest import ErrorClass
from textmill_inference.loadtest.answer import Answer, TokenSink
from textmill_inference.loadtest.clocks import Exchange

IDLE_S = 4.0
MOST_DIALS = 256
"""Dialled at once: more would overflow a server's backlog, whose packets come again a second later."""
_OWN_LIMITS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
OnBegun = Callable[[Exchange], None]
"""Takes an exchange for which a connection was picked or is dialled."""
OnDone = Callable[[Exchange, dict[str, float]], None]
"""Takes an exchange that ended, and what the target told of its own times, in ms by name."""


@dataclass(frozen=True)
class Address:
    """``host`` is an IP address; ``name`` is who it must prove to be."""

    host: str
    port: int
    tls: bool = False
    name: str = ""
    verify_tls: bool = True


class Wire:
    """All connections of one worker to its target. Belongs to one event loop."""

    def __init__(self, address: "Address", fresh: bool, stream: bool, on_begun: OnBegun, on_done: OnDone) -> None:
        self._address = address
        self._tls = tls_context(address) if address.tls else None
        self.fresh = fresh
        self.stream = stream
        self.on_begun = on_begun
        self.on_done = on_done
        self.connections = 0
        self._idle: list[Connection] = []
        self._waiting: deque[tuple[Exchange, TokenSink]] = deque()
        self._dialling: dict[Exchange, asyncio.Task[None]] = {}
        self._busy: dict[Exchange, Connection] = {}

    def send(self, exchange: Exchange, sink: TokenSink) -> None:
        """At once on a connection that is free, else on a new one, when it is its turn to be dialled."""
        exchange.asked = perf_counter()
        if not self.fresh:
            oldest = perf_counter() - IDLE_S
            while self._idle:
                # The one used last: those before it may go idle long enough to be dropped.
                connection = self._idle.pop()
                if not connection.closed and connection.idle_since > oldest:
                    exchange.begun = perf_counter()
                    self.on_begun(exchange)
                    self._busy[exchange] = connection
                    connection.begin(exchange, sink)
                    return
                connection.close()
        if len(self._dialling) >= MOST_DIALS:
            self._waiting.append((exchange, sink))
        else:
            self._dial(exchange, sink)

    def give_up(self, exchange: Exchange) -> None:
        """Closes what the exchange holds. Its ``on_done`` isn't called."""
        exchange.done = True
        if task := self._dialling.pop(exchange, None):
            task.cancel()
            self._dial_next()
        if connection := self._busy.pop(exchange, None):
            connection.close()

    def drop_idle(self) -> None:
        """Closes what has been idle too long, the oldest first."""
        oldest = perf_counter() - IDLE_S
        keep = next((at for at, one in enumerate(self._idle) if one.idle_since > oldest), len(self._idle))
        for connection in self._idle[:keep]:
            connection.close()
        del self._idle[:keep]

    def close(self) -> None:
        for exchange in [*self._dialling, *self._busy]:
            self.give_up(exchange)
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def ended(self, connection: "Connection", exchange: Exchange, times: dict[str, float]) -> None:
        """Called by a connection whose exchange is over, one way or the other."""
        self._busy.pop(exchange, None)
        exchange.done = True
        if not connection.closed:
            self._idle.append(connection)
        self.on_done(exchange, times)

    def _dial(self, exchange: Exchange, sink: TokenSink) -> None:
        exchange.begun = perf_counter()
        self.on_begun(exchange)
        self._dialling[exchange] = asyncio.create_task(self._connect(exchange, sink))

    def _dial_next(self) -> None:
        while self._waiting and len(self._dialling) < MOST_DIALS:
            exchange, sink = self._waiting.popleft()
            if not exchange.done:
                self._dial(exchange, sink)

    async def _connect(self, exchange: Exchange, sink: TokenSink) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), self._address.host, self._address.port,
                ssl=self._tls, server_hostname=self._address.name if self._tls else None,
            )  # fmt: skip
        except OSError as exc:  # TLS failures are OSErrors too
            self._dialling.pop(exchange, None)
            self._dial_next()
            _refuse(exchange, exc)
            self.on_done(exchange, {})
            return
        self._dialling.pop(exchange, None)
        self._dial_next()
        exchange.connect_s = perf_counter() - exchange.asked
        self._busy[exchange] = connection
        connection.begin(exchange, sink)


class Connection(asyncio.Protocol):
    """One connection, and the exchange that is on it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._socket = -1
        self._exchange: Exchange | None = None
        self._answer: Answer | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._now = 0.0
        self._framed = False
        self._content_type = ""
        self._times: dict[str, float] = {}
        self.idle_since = 0.0
        self.closed = False

    def begin(self, exchange: Exchange, sink: TokenSink) -> None:
        if self._transport is None or self.closed:
            exchange.sent = perf_counter()
            self._exchange = exchange
            self._lost("closed by the target before anything was sent")
            return
        self._exchange = exchange
        self._answer = Answer(exchange, self._wire.stream, sink)
        self._parser = httptools.HttpResponseParser(self)
        self._framed, self._content_type, self._times = False, "", {}
        exchange.sent = perf_counter()
        self._write(self._transport, exchange.request)

    def close(self) -> None:
        """Leaves the exchange as it is."""
        self._exchange = self._answer = self._parser = None
        if not self.closed and self._transport is not None:
            self._transport.abort()
        self.closed = True

    def _write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Past uvloop, which would hold the bytes until the end of its round: ``sent`` would be too early."""
        if self._socket >= 0:
            try:
                done = os.write(self._socket, data)
            except BlockingIOError:
                done = 0
            except OSError:
                return  # the loop hears of it, too
            if done == len(data):
                return
            data = data[done:]
        transport.write(data)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own isn't a subclass
        if transport.get_extra_info("sslcontext") is None:
            self._socket = transport.get_extra_info("socket").fileno()
        self._wire.connections += 1

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        if self._parser is None or self._exchange is None:  # between exchanges nothing is due
            self.close()
            return
        if not self._exchange.first_byte:
            self._exchange.first_byte = self._now
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if self._exchange is not None:
                self._finish(ErrorClass.WRONG_CONTENT, f"not HTTP: {exc}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.connections -= 1
        self.closed = True
        self._transport = None  # else a cycle, and the collector is off
        if self._exchange is None:
            return
        if exc is None and self._answer is not None and self._exchange.status is not None and not self._framed:
            self._now = perf_counter()
            self.on_message_complete()  # a body without a length and without chunks ends just so
        else:
            self._lost(str(exc) if exc else "closed by the target")

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._exchange is None:  # a second response, to nothing
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.decode("latin-1").lower()
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == b"server-timing":
            self._times.update(server_timing(value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self._parser is not None and self._answer is not None and (status := self._parser.get_status_code()) >= 200:
            self._answer.head(status, self._content_type)

    def on_body(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer.feed(data, self._now)

    def on_message_complete(self) -> None:
        exchange, answer, parser = self._exchange, self._answer, self._parser
        if exchange is None or answer is None or parser is None or exchange.status is None:
            return  # an interim response, such as 103: the real one follows
        answer.end()
        if exchange.error is None:
            answer.read_usage()
            self._times |= answer.server_times()
        if self._wire.fresh or not parser.should_keep_alive():
            self._finish(exchange.error, exchange.detail)
            return
        exchange.ended = self.idle_since = self._now
        self._exchange = self._answer = self._parser = None
        self._wire.ended(self, exchange, self._times)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _lost(self, why: str) -> None:
        """Before any answer that is a reset, within one a broken stream."""
        exchange = self._exchange
        assert exchange is not None
        began = exchange.status == 200
        self._now = perf_counter()
        self._finish(ErrorClass.BROKEN_STREAM if began else ErrorClass.RESET, why)

    def _finish(self, error: ErrorClass | None, detail: str) -> None:
        """Ends the exchange, and the connection with it."""
        exchange = self._exchange
        assert exchange is not None
        exchange.error, exchange.detail = exchange.error or error, exchange.detail or detail
        exchange.ended = self._now
        times = self._times
        self.close()
        self._wire.ended(self, exchange, times)


def tls_context(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not address.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_timing(value: str) -> dict[str, float]:
    """The durations of a Server-Timing header (W3C), in ms, as ``header_<name>``."""
    times: dict[str, float] = {}
    for metric in value.split(","):
        name, *parameters = (item.strip() for item in metric.split(";"))
        for parameter in parameters:
            key, _, number = parameter.partition("=")
            if key == "dur" and name:
                try:
                    times[f"header_{name}"] = float(number.strip('"'))
                except ValueError:
                    continue
    return times


def _refuse(exchange: Exchange, exc: OSError) -> None:
    exchange.done = True
    exchange.ended = perf_counter()
    exchange.error = ErrorClass.REFUSED
    exchange.detail = str(exc)
    exchange.own_limit = exc.errno in _OWN_LIMITS
