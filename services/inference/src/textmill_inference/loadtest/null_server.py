"""An OpenAI-compatible server that does nothing on time, and keeps the truth about it.

``python -m textmill_inference.loadtest.null_server --ttft-ms 100 --itl-ms 50`` listens on loopback, prints its port and
answers any request with ``max_tokens`` words: the first after one time, the others after the other. What it really did
is at ``GET /truth``: when it had read each request and when it wrote each token, by its own clock (see truth.py).
For calibration, for benchmarks and for trying a load test out. On one core some 40,000 tokens/s.
"""

import argparse
import asyncio
import heapq
import itertools
import os
import re
import sys
from time import perf_counter
from typing import cast

import httptools
import uvloop

from textmill_inference.loadtest.truth import Truth
from textmill_inference.loadtest.worker import raise_file_limit

_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_STREAM = re.compile(rb'"stream":\s*true')
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"null","object":"%b","created":1,"model":"null","choices":[{"index":0,%b,"logprobs":null,'
    b'"finish_reason":null}],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
_LAST = b'data: {"id":"null","object":"%b","created":1,"model":"null","choices":[],%b}\n\ndata: [DONE]\n\n'
_USAGE = b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}'
_WHOLE = b'{"id":"null","object":"%b","created":1,"model":"null","choices":[{"index":0,%b,"finish_reason":"stop"}],%b}'
_MOST_FILES = 20_000


class NullServer:
    """The times that it keeps, what is due to be written, and the truth. One event loop."""

    def __init__(self, ttft_s: float, itl_s: float) -> None:
        self.ttft_s, self.itl_s = ttft_s, itl_s
        self.truth = Truth()
        self._due: list[tuple[float, int, Answering]] = []
        self._numbers = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")

    def at(self, due: float, answering: "Answering") -> None:
        heapq.heappush(self._due, (due, next(self._numbers), answering))
        if due < self._timer_due:
            self._wait_until(due)

    def _wait_until(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - perf_counter()), self._write_due)

    def _write_due(self) -> None:
        self._timer, self._timer_due = None, float("inf")
        queue = self._due
        now = perf_counter()
        while queue and queue[0][0] <= now:
            due, _, answering = heapq.heappop(queue)
            if following := answering.write(due):
                heapq.heappush(queue, (following, next(self._numbers), answering))
            now = perf_counter()
        if queue:
            self._wait_until(queue[0][0])


class Answering:
    """One request that is being answered."""

    __slots__ = (
        "_chat",
        "_connection",
        "_last",
        "_prompt_tokens",
        "_received",
        "_server",
        "_stream",
        "_tokens",
        "_written",
    )

    def __init__(
        self, server: NullServer, connection: "NullConnection", body: bytes, chat: bool, received: float
    ) -> None:
        self._server, self._connection, self._chat, self._received = server, connection, chat, received
        found = _MAX_TOKENS.search(body)
        self._tokens = max(1, int(found[1])) if found else 16
        self._stream = _STREAM.search(body) is not None
        self._prompt_tokens = body.count(b" ")
        self._written = 0
        self._last = received
        whole_s = 0.0 if self._stream else server.itl_s * (self._tokens - 1)
        server.at(received + server.ttft_s + whole_s, self)

    def write(self, due: float) -> float | None:
        """Writes what is due, and says when the next is."""
        if self._connection.closed:
            return None
        truth, now = self._server.truth, perf_counter()
        truth.late(now - due)
        if not self._stream:
            self._connection.write(self._whole())
            self._end(now)
            return None
        self._written += 1
        data = self._event(self._written)
        if self._written == 1:
            truth.first_token(now - self._received)
            data = _HEAD + _framed(self._events(0)) + data
        else:
            truth.gap(now - self._last)
        self._last = now
        if self._written < self._tokens:
            self._connection.write(data)
            return due + self._server.itl_s
        self._connection.write(data + _framed(self._farewell()) + b"0\r\n\r\n")
        self._end(now)
        return None

    def _end(self, now: float) -> None:
        self._server.truth.ended(now - self._received)
        self._connection.answered()

    def _event(self, tokens: int) -> bytes:
        return _framed(self._events(tokens))

    def _events(self, tokens: int) -> bytes:
        said = b'"delta":{"content":" word"}' if self._chat else b'"text":" word"'
        if tokens == 0:
            said = b'"delta":{"role":"assistant","content":""}' if self._chat else b'"text":""'
        return _EVENT % (self._object(), said, self._prompt_tokens, self._prompt_tokens + tokens, tokens)

    def _farewell(self) -> bytes:
        return _LAST % (self._object(), self._usage())

    def _whole(self) -> bytes:
        words = b" word" * self._tokens
        said = b'"message":{"role":"assistant","content":"%b"}' if self._chat else b'"text":"%b"'
        body = _WHOLE % (self._object(whole=True), said % words, self._usage())
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def _usage(self) -> bytes:
        return _USAGE % (self._prompt_tokens, self._prompt_tokens + self._tokens, self._tokens)

    def _object(self, whole: bool = False) -> bytes:
        if not self._chat:
            return b"text_completion"
        return b"chat.completion" if whole else b"chat.completion.chunk"


class NullConnection(asyncio.Protocol):
    """One client's connection; one request at a time on it, as clients of HTTP/1.1 do it."""

    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._socket = -1
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._now = 0.0
        self._keep_alive = True
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._close()

    def write(self, data: bytes) -> None:
        """At once, so that the truth's times are those of the socket."""
        assert self._transport is not None
        try:
            done = os.write(self._socket, data)
        except BlockingIOError:
            done = 0
        except OSError:
            self.closed = True
            return
        if done < len(data):
            self._transport.write(data[done:])

    def answered(self) -> None:
        if not self._keep_alive and self._transport is not None:
            self._transport.close()

    def _close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # -- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._path, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        if self._path == b"/truth":
            self._answer_json(self._server.truth.read().model_dump_json().encode())
        elif self._path == b"/truth/reset":
            self._server.truth = Truth()
            self._answer_json(b"{}")
        elif self._path.endswith(b"/completions"):
            Answering(self._server, self, b"".join(self._body), self._path.endswith(b"/chat/completions"), self._now)
        else:
            self._answer_json(b'{"object":"list","data":[{"id":"null","object":"model"}]}')

    def _answer_json(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.write(head % len(body) + body)
        self.answered()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(ttft_s: float, itl_s: float, port: int) -> None:
    """Until standard input is closed: it doesn't outlive who started it."""
    loop = asyncio.get_running_loop()
    server = NullServer(ttft_s, itl_s)
    listener = await loop.create_server(lambda: NullConnection(server), "127.0.0.1", port, backlog=4096)
    print(listener.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()

    def heard() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            over.set()

    loop.add_reader(sys.stdin.fileno(), heard)
    await over.wait()
    listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ttft-ms", type=float, default=100.0, help="until the first token")
    parser.add_argument("--itl-ms", type=float, default=50.0, help="between tokens")
    parser.add_argument("--port", type=int, default=0, help="0 takes one that is free")
    parser.add_argument("--cpu", type=int, help="the core to stay on")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    for files in (_MOST_FILES, 4_000):
        if raise_file_limit(files):
            break
    uvloop.run(serve(options.ttft_ms / 1e3, options.itl_ms / 1e3, options.port))


if __name__ == "__main__":
    main()
