"""The load generator: a closed loop of streaming chat requests, in a process of its own.

``python -m textmill_inference.loadtest.client`` reads one ``LoadPlan`` from standard input, writes ``LoadNews`` lines.
The API key, if one is needed, is in the environment (TEXTMILL_LOADTEST_KEY). Sends to the plan's URL only and follows
no redirect. Token times come from the usage counts in the stream (``continuous_usage_stats``), since a chunk can hold
several tokens or none; a target that doesn't send them gets no inter-token figures.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import uvloop

from textmill.contracts.serving import LoadLevel
from textmill_inference.loadtest.latency import Latencies
from textmill_inference.loadtest.plan import LoadNews, LoadPlan

KEY_VARIABLE = "TEXTMILL_LOADTEST_KEY"


class _Failed(Exception):
    """A request that counts as an error of the class in its message."""


@dataclass
class _Tally:
    """What one level has measured so far."""

    ttft: Latencies = field(default_factory=Latencies)
    itl: Latencies = field(default_factory=Latencies)
    e2e: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    succeeded: int = 0
    tokens: int = 0


@dataclass
class _Stream:
    """The clocks of one request, in seconds of ``time.perf_counter``."""

    sent: float
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    counted: bool = False
    complete: bool = False

    def take(self, event: bytes, now: float) -> None:
        """One ``data:`` payload. Raises ``_Failed`` if it isn't what a chat stream holds."""
        if event == b"[DONE]":
            self.complete = True
            return
        try:
            chunk = json.loads(event)
            choices, usage = chunk.get("choices") or [], chunk.get("usage")
            text = any((c.get("delta") or {}).get("content") for c in choices)
        except (ValueError, AttributeError) as exc:
            raise _Failed("wrong_content") from exc
        if "error" in chunk:
            raise _Failed("broken_stream")
        if usage and choices:
            self.counted = True
        total = usage["completion_tokens"] if usage else self.tokens + (1 if text else 0)
        if total > self.tokens and choices:
            self._tokens_came(total, now)
        self.tokens = max(self.tokens, total)

    def _tokens_came(self, total: int, now: float) -> None:
        if self.first is None:
            # Tokens that came with the first one have no gap of their own.
            self.first = now
        else:
            new = total - self.tokens
            self.gaps.append(((now - self.last) / new, new))
        self.last = now


async def run(plan: LoadPlan) -> AsyncIterator[LoadNews]:
    """All levels in order, with news about once a second."""
    headers = {"Authorization": f"Bearer {os.environ[KEY_VARIABLE]}"} if os.environ.get(KEY_VARIABLE) else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=plan.timeout_s)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, read_bufsize=1024 * 1024
    ) as session:
        prompts = _cycle(plan.messages)
        for concurrency in plan.concurrencies:
            async for news in _level(session, plan, concurrency, prompts):
                yield news


async def _level(
    session: aiohttp.ClientSession, plan: LoadPlan, concurrency: int, prompts: Iterator[Sequence[dict[str, str]]]
) -> AsyncIterator[LoadNews]:
    """``concurrency`` clients that each send their next request when the last is answered.

    No request is sent after ``seconds_per_level``; those under way then may end, or their latencies would be missing
    from the sample just because they are long.
    """
    tally = _Tally()
    began = time.perf_counter()
    until = began + plan.seconds_per_level

    async def client() -> None:
        while tally.sent < plan.requests_per_level and time.perf_counter() < until:
            tally.sent += 1
            await _request(session, plan, next(prompts), tally)

    pending = {asyncio.create_task(client()) for _ in range(concurrency)}
    while pending:
        finished, pending = await asyncio.wait(pending, timeout=1.0)
        for task in finished:
            task.result()
        yield LoadNews(concurrency=concurrency, requests=tally.succeeded, errors=tally.errors.total())
    yield LoadNews(concurrency=concurrency, level=_figures(concurrency, tally, time.perf_counter() - began))


async def _request(
    session: aiohttp.ClientSession, plan: LoadPlan, messages: Sequence[dict[str, str]], tally: _Tally
) -> None:
    body = {
        "model": plan.model,
        "messages": list(messages),
        "max_tokens": plan.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    stream = _Stream(time.perf_counter())
    try:
        async with session.post(plan.url, json=body, allow_redirects=False) as response:
            if response.status != 200:
                raise _Failed(_status_class(response.status))
            if response.content_type != "text/event-stream":
                raise _Failed("wrong_content")
            async for event in _events(response.content):
                stream.take(event, time.perf_counter())
        if not stream.complete:
            raise _Failed("broken_stream")
        if stream.first is None:
            raise _Failed("wrong_content")
    except _Failed as failed:
        tally.errors[str(failed)] += 1
    except TimeoutError:
        tally.errors["timeout"] += 1
    except aiohttp.ClientConnectorError:
        tally.errors["refused"] += 1
    except aiohttp.ClientPayloadError:
        tally.errors["broken_stream"] += 1
    except (aiohttp.ClientError, ConnectionError):
        tally.errors["reset"] += 1
    else:
        _count(stream, tally, time.perf_counter())


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The payloads of ``data:`` lines, as they come."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _count(stream: _Stream, tally: _Tally, ended: float) -> None:
    assert stream.first is not None
    tally.succeeded += 1
    tally.tokens += stream.tokens
    tally.ttft.add((stream.first - stream.sent) * 1e3)
    tally.e2e.add((ended - stream.sent) * 1e3)
    if stream.counted:
        for gap_s, tokens in stream.gaps:
            tally.itl.add(gap_s * 1e3, tokens)


def _figures(concurrency: int, tally: _Tally, seconds: float) -> LoadLevel:
    return LoadLevel(
        concurrency=concurrency,
        requests=tally.sent,
        succeeded=tally.succeeded,
        errors=dict(sorted(tally.errors.items())),
        seconds=seconds,
        requests_per_s=tally.succeeded / seconds,
        output_tokens_per_s=tally.tokens / seconds,
        ttft_ms=tally.ttft.summary(),
        itl_ms=tally.itl.summary(),
        e2e_ms=tally.e2e.summary(),
    )


def _status_class(status: int) -> str:
    return "429" if status == 429 else f"{status // 100}xx"


def _cycle(prompts: Sequence[Sequence[dict[str, str]]]) -> Iterator[Sequence[dict[str, str]]]:
    while True:
        yield from prompts


async def _main() -> None:
    plan = LoadPlan.model_validate_json(sys.stdin.buffer.read())
    async for news in run(plan):
        sys.stdout.write(news.model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_main())
