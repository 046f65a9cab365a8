"""A small OpenAI-compatible chat server with planted faults, on a thread of its own.

It answers with the sentence in the prompt unless told otherwise. ``faults`` maps the number of a request (from 0) to
what goes wrong with it; ``always`` is for all others.
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from aiohttp import web


@dataclass(frozen=True)
class Say:
    """A chat completion with this text."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Status:
    """An error status, with Retry-After when given."""

    status: int
    retry_after: str | None = None


@dataclass(frozen=True)
class Garbage:
    """Status 200 and a body that is no chat completion."""


@dataclass(frozen=True)
class Drip:
    """A byte now and then, for ever."""

    every_s: float = 0.01


@dataclass(frozen=True)
class Stall:
    """Nothing at all."""


@dataclass(frozen=True)
class Hang:
    """The connection is closed before an answer."""


Fault = Say | Status | Garbage | Drip | Stall | Hang


@dataclass
class FaultLlm:
    always: Fault | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    answer: Callable[[str], str] | None = None
    requests: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paid: int = 0
    most_at_once: int = 0
    delay_s: float = 0.0

    def __enter__(self) -> "FaultLlm":
        self._loop = asyncio.new_event_loop()
        self._at_once = 0
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self.delay_s)
            return await self._respond(request, body, self.faults.get(number, self.always))
        finally:
            self._at_once -= 1

    async def _respond(self, request: web.Request, body: dict[str, object], fault: Fault | None) -> web.StreamResponse:
        match fault:
            case Status(status, retry_after):
                headers = {"Retry-After": retry_after} if retry_after is not None else {}
                return web.json_response({"error": {"message": "planted"}}, status=status, headers=headers)
            case Garbage():
                return web.Response(text="<html>gateway</html>", content_type="text/html")
            case Stall():
                await asyncio.sleep(3600)
            case Hang():
                assert request.transport is not None
                request.transport.close()
            case Drip(every_s):
                return await self._drip(request, every_s)
        prompt = body["messages"][-1]["content"]  # type: ignore[index]
        said = fault if isinstance(fault, Say) else Say((self.answer or answer_from_passage)(prompt))
        self.paid += 1
        return web.json_response(completion(said))

    async def _drip(self, request: web.Request, every_s: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(every_s)


def completion(said: Say) -> dict[str, object]:
    message = {"role": "assistant", "content": said.text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": said.finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def answer_from_passage(prompt: str) -> str:
    """The sentence that the prompt shows, and some rambling after it."""
    shown = re.search(r'The answer is: "(.*)"|答案是：“(.*)”', prompt)
    assert shown is not None, prompt
    return (shown[1] or shown[2]) + " And more"
