"""A server of known latency that speaks OpenAI's chat protocol: raw asyncio, httptools and uvloop, no model.

    python bench/gateway_mock.py --latency 0.02 --gap 0.1 --tokens 50

Prints its URL. A plain answer comes ``latency`` after the request, and so does a stream's first event; each one after
it comes ``gap`` later, by one clock, so that a late one makes none after it late.
"""

import argparse
import asyncio
import json
from functools import partial

import httptools
import uvloop

_BASE = {"id": "chatcmpl-0123456789abcdef", "created": 1_700_000_000, "model": "mock"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 50, "total_tokens": 62}


def _event(delta: dict[str, str]) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    value = {**_BASE, "object": "chat.completion.chunk", "choices": [choice]}
    return _chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _plain() -> bytes:
    message = {"role": "assistant", "content": "Seven has six lines, and the fifth of them is whole. " * 4}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = json.dumps({**_BASE, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()
    head = b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


PLAIN = _plain()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
TOKEN = _event({"content": " hexagram"})
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Mock(asyncio.Protocol):
    """One connection."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.streams = False

    def on_body(self, body: bytes) -> None:
        self.streams = self.streams or b'"stream":true' in body.replace(b" ", b"")

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            self.transport.write(_HEALTHY)
        elif self.streams:
            self.due = self.loop.time() + self.options.latency
            self.timer = self.loop.call_at(self.due, self.first)
        elif self.options.latency:
            self.timer = self.loop.call_later(self.options.latency, self.transport.write, PLAIN)
        else:
            self.transport.write(PLAIN)

    def first(self) -> None:
        self.transport.write(STREAM_HEAD + TOKEN)
        self.next(self.options.tokens - 1)

    def next(self, left: int) -> None:
        self.due += self.options.gap
        self.timer = self.loop.call_at(self.due, self.another if left else self.end, *((left,) if left else ()))

    def another(self, left: int) -> None:
        self.transport.write(TOKEN)
        self.next(left - 1)

    def end(self) -> None:
        self.transport.write(_END)


async def serve(options: argparse.Namespace) -> None:
    server = await asyncio.get_running_loop().create_server(
        partial(Mock, options), "127.0.0.1", options.port, backlog=4096
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--gap", type=float, default=0.1, help="seconds between a stream's events")
    parser.add_argument("--tokens", type=int, default=50, help="events of a stream")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
