"""A gateway whose insides can be looked at, in front of an engine that a test scripts."""

import asyncio
import itertools
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from tests.inference.gateway.scripted import Engine, Gate, Upstream

from textmill_inference.gateway import engine_watch, pools
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.metrics import GatewayMetrics


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy for some seconds looks like an engine that is away. Here none is but those that are."""
    monkeypatch.setattr(pools, "_CONNECT_WITHIN_S", 60.0)
    monkeypatch.setattr(pools, "_HEALTH_WITHIN_S", 60.0)
    monkeypatch.setattr(engine_watch, "_WITHIN_S", 60.0)


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers: list[asyncio.Server] = []

    def make(tls: ssl.SSLContext | None = None) -> Engine:
        engine = Engine()

        async def start() -> None:
            server = await asyncio.start_server(engine.serve, "127.0.0.1", 0, backlog=2048, ssl=tls)
            host = "https://localhost" if tls else "http://127.0.0.1"
            engine.url = f"{host}:{server.sockets[0].getsockname()[1]}"
            servers.append(server)

        asyncio.run_coroutine_threadsafe(start(), loop).result(60)
        return engine

    async def stop() -> None:
        for server in servers:
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    yield make
    asyncio.run_coroutine_threadsafe(stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


@pytest.fixture
def make_gate(engine: Engine, serve: Callable[..., str]) -> Callable[..., Gate]:
    def make(upstream: Upstream | None = None, **options: Any) -> Gate:
        served, registry, loops = upstream or Upstream(engine.url), CollectorRegistry(), list[Any]()
        metrics = GatewayMetrics(registry)
        keys = options.pop("keys", KeyRing())
        routes = {"small": served}
        gateway = Gateway(FastAPI(), lambda: routes, keys, options.pop("hold_s", 60.0), metrics=metrics, **options)

        under_way, numbers = set[int](), itertools.count()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            loops[:] = [asyncio.get_running_loop()]
            if scope["type"] != "http":
                await gateway(scope, receive, send)
                return
            under_way.add(number := next(numbers))
            try:
                await gateway(scope, receive, send)
            finally:
                under_way.discard(number)

        return Gate(serve(app), gateway, served, registry, loops, routes, under_way)

    return make


@pytest.fixture
def gate(make_gate: Callable[..., Gate]) -> Gate:
    return make_gate()
