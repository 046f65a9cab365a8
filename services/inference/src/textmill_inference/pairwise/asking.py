"""Puts chat requests to an OpenAI-compatible endpoint, some at a time, until all are answered or the job must stop."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from pydantic import JsonValue

from textmill.contracts.pairwise import ChatMessage
from textmill.errors import BadRequest, DependencyDown, JobFailed

_TIMEOUT_S = 300.0
"""For one answer, queueing included: a slow machine with a full queue is no error."""
_BUSY = {408, 429, 500, 502, 503, 504}
_WRONG = {401, 403, 404}
T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """``trouble`` is the endpoint's reason for giving no answer to this request; others may still be answered."""

    text: str
    finish_reason: str | None
    seconds: float
    trouble: str | None = None


def chat_url(base: str) -> str:
    """``base`` may be a server's root or its OpenAI base URL, with ``/v1`` at the end. Raises ``BadRequest``."""
    if not base.startswith(("http://", "https://")):
        raise BadRequest(f"{base!r} is no HTTP address; give one like https://judge.example.com/v1")
    return f"{base.rstrip('/').removesuffix('/v1')}/v1/chat/completions"


class ChatEndpoint:
    """``key`` may be empty. Used as a context manager, on the event loop it is entered on."""

    def __init__(self, base_url: str, key: str = "") -> None:
        self._url = chat_url(base_url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> "ChatEndpoint":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            headers=self._headers,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, model: str, messages: Sequence[ChatMessage], max_tokens: int, temperature: float) -> Said:
        """One answer.

        Raises:
            DependencyDown: nobody is there, or too busy.
            JobFailed: the model or the key is wrong, which no other request would change.
        """
        body: dict[str, JsonValue] = {
            "model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature,
        }  # fmt: skip
        began = time.monotonic()
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                data = await response.read()
                if response.status in _BUSY:
                    raise DependencyDown(f"{self._url} answered {response.status} for model {model!r}")
                if response.status in _WRONG:
                    raise JobFailed(f"{self._url} answered {response.status} for model {model!r}: {_told(data)}")
                if response.status != 200:
                    trouble = f"{response.status}: {_told(data)}"
                    return Said("", None, time.monotonic() - began, trouble)
                return _said(await response.json(content_type=None), time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise DependencyDown(f"{self._url}: {type(exc).__name__}: {exc}") from exc


async def each(
    items: Sequence[T], work: Callable[[T], Awaitable[None]], at_once: int, stopping: threading.Event
) -> None:
    """Do the work on all, ``at_once`` at a time. A stop ends it at once, with nothing left running.

    After a failure nothing new begins, and what is under way may end: it is paid for. Then the failure is raised.
    """
    waiting, failures = iter(items), list[Exception]()

    async def worker() -> None:
        for item in waiting:
            try:
                await work(item)
            except Exception as exc:
                failures.append(exc)
            if failures:
                return

    tasks = [asyncio.create_task(worker()) for _ in range(min(at_once, len(items)))]
    pending = set(tasks)
    try:
        while pending and not stopping.is_set():
            _, pending = await asyncio.wait(pending, timeout=0.2)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failures and not stopping.is_set():
        raise failures[0]


def _said(answer: object, seconds: float) -> Said:
    try:
        choice = answer["choices"][0]  # type: ignore[index]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Said("", None, seconds, "the answer isn't in OpenAI's form")
    if not isinstance(text, str) or not text.strip():
        return Said("", reason if isinstance(reason, str) else None, seconds, "the answer has no text")
    return Said(text, reason if isinstance(reason, str) else None, seconds)


def _told(data: bytes) -> str:
    return data[:300].decode(errors="replace")
