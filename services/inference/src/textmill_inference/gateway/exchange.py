"""One request and how far its answer has come, and what is left of it when it is over."""

import time

from starlette.types import Message, Send

from textmill_inference.gateway.keys import Caller
from textmill_inference.gateway.metrics import Series
from textmill_inference.gateway.ports import Exchanged, Outcome
from textmill_inference.gateway.request import Asked
from textmill_inference.gateway.usage import TokenCount, Usage, usage_of

CLIENT_LEFT = 499
_DONE = b"data: [DONE]"


class Exchange:
    """Times are those of ``time.perf_counter``. ``keep`` is how much of the answer to keep for the recorder.

    ``status`` is what the client was sent: ``CLIENT_LEFT`` as long as that is nothing. ``started`` says that the
    answer's head was sent, ``finished`` that its end was.
    """

    __slots__ = (
        "abandoned", "answer", "asked", "began", "caller", "count", "finished", "first_byte", "headers", "keep", "last",
        "path", "request_id", "route", "send", "series", "started", "status", "streamed", "upstream", "usage",
    )  # fmt: skip

    def __init__(
        self,
        route: str,
        path: str,
        asked: Asked,
        caller: Caller,
        series: Series,
        request_id: str,
        headers: bytes,
        send: Send,
        keep: int = 0,
    ) -> None:
        self.route, self.path, self.asked, self.caller, self.series = route, path, asked, caller, series
        self.request_id, self.headers, self.send, self.keep = request_id, headers, send, keep
        self.began = self.last = time.perf_counter()
        self.first_byte: float | None = None
        self.status = CLIENT_LEFT
        self.upstream = ""
        self.started = self.finished = self.abandoned = self.streamed = False
        self.count = TokenCount()
        self.usage: Usage | None = None
        self.answer = bytearray()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]], streamed: bool) -> None:
        self.started, self.status, self.streamed = True, status, streamed
        self.first_byte = self.last = time.perf_counter()
        if streamed:
            self.series.ttft.observe(self.last - self.began)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: bytes, more: bool) -> None:
        """Send a piece of the answer; waits while the client is slow to read."""
        if not more:
            self.finished = True
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
        if more or self.streamed or self.count.tail:
            self.count.take(data)
        else:
            self.usage = usage_of(data)
        if self.keep > len(self.answer):
            self.answer += data[: self.keep - len(self.answer)]

    def piece_came(self, data: bytes) -> None:
        """The next piece of a stream has come from the engine."""
        if self.streamed and not data.startswith(_DONE):
            now = time.perf_counter()
            self.series.gaps.observe(now - self.last)
            self.last = now

    @property
    def said_done(self) -> bool:
        """A stream's last event was sent; what is left is the end of the body."""
        return self.streamed and self.count.tail.rstrip().endswith(_DONE)

    def used(self) -> Usage:
        """The tokens of the answer so far."""
        return self.usage or self.count.usage()

    # -- when it is over -------------------------------------------------------------------------------------------

    def settle(self) -> int | None:
        """Add it to the metrics. Returns prompt and answer tokens, None if the answer didn't tell."""
        series, usage = self.series, self.used()
        series.statuses[self.status] += 1
        series.seconds.observe(time.perf_counter() - self.began)
        if not usage.told:
            series.unreported_tokens += usage.completion
            return None
        series.prompt_tokens += usage.prompt
        series.completion_tokens += usage.completion
        return usage.prompt + usage.completion

    def outcome(self, complete: bool, status: int) -> Outcome:
        usage = self.used()
        ttft_s = self.first_byte - self.began if self.first_byte is not None else None
        tokens = usage.completion if usage.told else 0
        return Outcome(status, complete, tokens, time.perf_counter() - self.began, ttft_s)

    def exchanged(self, shadow: bool = False) -> Exchanged:
        ended_at = time.time()
        to_epoch = ended_at - time.perf_counter()
        return Exchanged(
            request_id=self.request_id,
            route=self.route,
            model=self.asked.model,
            upstream=self.upstream,
            caller=self.caller,
            status=self.status,
            complete=self.finished and not self.abandoned,
            streamed=self.streamed,
            request=self.asked.body,
            answer=bytes(self.answer),
            answer_cut=len(self.answer) >= self.keep,
            began_at=self.began + to_epoch,
            first_byte_at=None if self.first_byte is None else self.first_byte + to_epoch,
            ended_at=ended_at,
            shadow=shadow,
        )


async def discard(message: Message) -> None:
    """The client of a shadow's copy."""
