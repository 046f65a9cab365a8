"""Real servers on loopback for the load generator: the null server, and one that plays what a test scripts."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.inference.loadtest.scripted import Scripted

from textmill.contracts.load import ConstantRate, Expectation, Fixed, Load, MadeUpPrompts, Stage, Target, Traffic
from textmill_inference.loadtest.calibration import null_server

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listener = asyncio.run_coroutine_threadsafe(
        asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=1024), loop
    ).result(60)
    server.port = listener.sockets[0].getsockname()[1]
    yield server

    async def stop() -> None:
        listener.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def null_url() -> Iterator[str]:
    """A null server: the first token after 20 ms, the others after 5."""
    with null_server(Expectation(ttft_ms=20, itl_ms=5)) as url:
        yield url


@pytest.fixture
def own_null_url() -> Iterator[str]:
    """One that no other test has asked: its truth has nothing of what others left under way."""
    with null_server(Expectation(ttft_ms=20, itl_ms=5)) as url:
        yield url


@pytest.fixture
def make_stage() -> Callable[..., Stage]:
    def make(url: str, load: Load | None = None, tokens: int = 3, **more: object) -> Stage:
        fields: dict[str, object] = {
            "target": Target(url=url, model="m"),
            "load": load or ConstantRate(rate_per_s=50),
            "traffic": Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=12)), output=Fixed(value=tokens)),
            "seconds": 0.5,
            "timeout_s": 20.0,
        }
        return Stage.model_validate(fields | more)

    return make
