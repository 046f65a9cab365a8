"""A server that answers for several models, and a comparison made with it."""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))


class ManyModels:
    """Answers chat requests by what ``answers`` says of a model; counts what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[list[dict[str, str]]], str]] = {
            "good": lambda messages: f"right: {messages[-1]['content']}",
            "bad": lambda messages: f"wrong: {messages[-1]['content']}",
            "same": lambda messages: f"right: {messages[-1]['content']}",
        }
        self.asked: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        self.refuse: set[str] = set()
        self.busy_after: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.url = ""

    async def complete(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.keys.add(request.headers.get("Authorization"))
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if self.busy_after is not None and len(self.asked) >= self.busy_after:
            return web.json_response({"error": {"message": "later"}}, status=503)
        model, last = body["model"], body["messages"][-1]["content"]
        self.asked.append((model, last))
        if model not in self.answers:
            return web.json_response({"error": {"message": f"no model {model}"}}, status=404)
        if last in self.refuse:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        choice = {"message": {"content": self.answers[model](body["messages"])}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})


@pytest.fixture
def models() -> Iterator[ManyModels]:
    server = ManyModels()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", server.complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield server
    server.gate.set()
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
