"""Reads one answer as it comes: server-sent events of a stream, or one JSON body. Knows no sockets.

The hot path of the load generator. An event in the form that vLLM and most others send, with usage in each chunk, costs
a search for one number and no JSON; anything else is parsed.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from textmill.contracts.loadtest import ErrorClass
from textmill_inference.loadtest.clocks import Exchange

MOST_EVENT_BYTES = 1 << 20
MOST_BODY_BYTES = 16 << 20
_KEPT_OF_ERROR = 2_000
_COUNT_KEY = b'"completion_tokens":'
_COUNT = re.compile(rb'"completion_tokens":\s*(\d+)')


class TokenSink(NamedTuple):
    """Is told of tokens as they come. ``first``: so many came that have no gap of their own. ``gap``: microseconds
    between tokens, and for how many tokens they hold."""

    first: Callable[[int], None]
    gap: Callable[[int, int], None]


class Answer:
    """Fills in the exchange's first and last token, its token count and, when something is wrong, its error.

    Token counts are the server's (``continuous_usage_stats``). A target that sends none until the end, or never, has
    its chunks with text taken for tokens, and ``source`` says so. A gap between chunks with several tokens is shared
    out evenly among them.
    """

    __slots__ = (
        "_data", "_exchange", "_record_gap", "_rest", "_sink", "_size", "_stream", "_tail", "complete",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, stream: bool, sink: TokenSink) -> None:
        self._exchange = exchange
        self._stream = stream
        self._sink = sink
        self._record_gap = sink.gap
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._tail = b""
        self.complete = False

    def head(self, status: int, content_type: str) -> None:
        """The status line and headers are in. Only a 200 of the right type is read as an answer."""
        exchange = self._exchange
        exchange.status = status
        wanted = "text/event-stream" if self._stream else "application/json"
        if status != 200:
            exchange.error = error_of(status)
        elif not content_type.startswith(wanted):
            self._fail(ErrorClass.WRONG_CONTENT, f"content type {content_type!r}, not {wanted}")

    def feed(self, data: bytes, now: float) -> None:
        """Some bytes of the body."""
        if self._exchange.error is not None or not self._stream:
            self._keep(data)
            return
        if (
            self._exchange.continuous
            and not self._rest
            and data.startswith(b"data: {")
            and data.find(b"\n\n") == len(data) - 2
        ):
            # One whole event, as nearly always.
            found = data.rfind(_COUNT_KEY)
            if found > 0 and (number := _COUNT.match(data, found)):
                self._tail = data
                exchange = self._exchange
                exchange.chunks += 1
                total = int(number[1])
                if total > exchange.tokens:
                    self._tokens_came(total, now)
                return
        self._lines(data, now)

    def end(self) -> None:
        """The response is whole."""
        exchange = self._exchange
        if self._data == [b"[DONE]"] or self._rest.strip() == b"data: [DONE]":
            self.complete = True  # some servers leave out the last empty line
        if exchange.error is not None:
            exchange.detail = exchange.detail or b"".join(self._data)[:500].decode(errors="replace")
        elif not self._stream:
            self._read_whole(b"".join(self._data))
        elif not self.complete:
            self._fail(ErrorClass.BROKEN_STREAM, "the stream ended without [DONE]")
        elif not exchange.first_token:
            self._fail(ErrorClass.WRONG_CONTENT, "the stream held no token")

    def server_times(self) -> dict[str, float]:
        """What the target says of its own times, in ms, from the last event: vLLM's per-request metrics."""
        metrics = self._parsed(self._tail.removeprefix(b"data:")).get("metrics")
        if not isinstance(metrics, dict):
            return {}
        return {name: float(ms) for name, ms in metrics.items() if name.endswith("_ms") and _is_number(ms)}

    # -- events ----------------------------------------------------------------------------------------------------

    def _lines(self, data: bytes, now: float) -> None:
        """Events by the rules of server-sent events: fields by line, an empty line ends one."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest
        if len(rest) > MOST_EVENT_BYTES:
            self._fail(ErrorClass.WRONG_CONTENT, f"an event of more than {MOST_EVENT_BYTES} bytes")
            return
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                self._data.clear()
                self._event(event, now)
                if self._exchange.error is not None:
                    return

    def _event(self, event: bytes, now: float) -> None:
        if event == b"[DONE]":
            self.complete = True
            return
        exchange = self._exchange
        exchange.chunks += 1
        number = _COUNT.search(event) if exchange.continuous else None
        if number is None:
            self._parse(event, now)
            return
        self._tail = event
        total = int(number[1])
        if total > exchange.tokens:
            self._tokens_came(total, now)

    def _parse(self, event: bytes, now: float) -> None:
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                self._fail(ErrorClass.BROKEN_STREAM, event[:500].decode(errors="replace"))
                return
            choices, usage = chunk["choices"], chunk.get("usage")
            text = any(_has_text(choice) for choice in choices)
            total = int(usage["completion_tokens"]) if usage else None
        except (ValueError, TypeError, KeyError, AttributeError):
            self._fail(ErrorClass.WRONG_CONTENT, "no chunk of a completion: " + event[:300].decode(errors="replace"))
            return
        self._take(bool(choices), text, total, event, now)

    def _take(self, choices: bool, text: bool, total: int | None, event: bytes, now: float) -> None:
        exchange = self._exchange
        if total is not None:
            self._tail = event
            exchange.source = "usage"
            if choices:
                exchange.continuous = True
                if total > exchange.tokens:
                    self._tokens_came(total, now)
            else:
                self._sink.first(total - exchange.tokens)
                exchange.tokens = total
        elif text:
            if exchange.source == "none":
                exchange.source = "chunks"
            self._tokens_came(exchange.tokens + 1, now)

    def _tokens_came(self, total: int, now: float) -> None:
        exchange = self._exchange
        if exchange.first_token:
            new = total - exchange.tokens
            self._record_gap(int((now - exchange.last_token) * 1e6) // new, new)
        else:
            exchange.first_token = now
            self._sink.first(total)
        exchange.last_token = now
        exchange.tokens = total

    # -- whole bodies ----------------------------------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._exchange.error is not None:
            if sum(map(len, self._data)) < _KEPT_OF_ERROR:
                self._data.append(data[:_KEPT_OF_ERROR])
        elif self._size > MOST_BODY_BYTES:
            self._fail(ErrorClass.WRONG_CONTENT, f"a body of more than {MOST_BODY_BYTES} bytes")
        else:
            self._data.append(data)

    def _read_whole(self, body: bytes) -> None:
        value = self._parsed(body)
        if not value.get("choices"):
            self._fail(ErrorClass.WRONG_CONTENT, "no completion: " + body[:300].decode(errors="replace"))
            return
        self._tail = body

    def read_usage(self) -> None:
        """The prompt's tokens, and a whole body's output tokens; once, when the exchange succeeded."""
        exchange = self._exchange
        usage = self._parsed(self._tail.removeprefix(b"data:")).get("usage")
        if not isinstance(usage, dict):
            return
        if isinstance(prompt := usage.get("prompt_tokens"), int):
            exchange.prompt_tokens = prompt
        if not self._stream and isinstance(total := usage.get("completion_tokens"), int):
            exchange.tokens, exchange.source = total, "usage"
            self._sink.first(total)

    def _fail(self, error: ErrorClass, detail: str) -> None:
        self._exchange.error = error
        self._exchange.detail = detail
        self._data.clear()
        self._rest = b""

    @staticmethod
    def _parsed(body: bytes) -> Mapping[str, Any]:
        try:
            value = json.loads(body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def error_of(status: int) -> ErrorClass:
    """A redirect isn't followed and is no answer."""
    if status == 429:
        return ErrorClass.TOO_MANY
    if 400 <= status < 500:
        return ErrorClass.CLIENT_ERROR
    return ErrorClass.SERVER_ERROR if status >= 500 else ErrorClass.WRONG_CONTENT


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk's choice carries output: text, reasoning or part of a tool call."""
    delta = choice.get("delta") or {}
    return bool(
        choice.get("text")
        or delta.get("content")
        or delta.get("reasoning")
        or delta.get("reasoning_content")
        or delta.get("tool_calls")
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
