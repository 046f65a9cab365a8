"""What engines say of their queue, from their metrics to the limit."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st

from textmill_inference.gateway.admission import Admission, Room
from textmill_inference.gateway.engine_watch import EngineLoad, EngineWatch, ask, load_of
from textmill_inference.gateway.keys import OPEN

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 30.0
vllm:num_requests_running{engine="1",model_name="small"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="small"} 32.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:num_requests_waiting{engine="1",model_name="small"} 0.0
"""


def test_all_engines_of_a_server_are_added_up() -> None:
    assert load_of(VLLM) == EngineLoad(32, 32)


def test_an_inference_service_in_an_engines_place_tells_its_own() -> None:
    ours = b"""\
textmill_gateway_requests_in_flight{route="chat",model="a}",group="x"} 10.0
textmill_gateway_requests_in_flight{route="completions",model="b",group="x"} 5.0
textmill_gateway_queue_length{model="a}"} 4.0
"""
    assert load_of(ours) == EngineLoad(11, 4)


@pytest.mark.parametrize("text", [b"", b"up 1\n", b"vllm:num_requests_running_total 3\n"])
def test_a_server_without_such_metrics_is_no_load(text: bytes) -> None:
    assert load_of(text) is None


@given(st.binary())
def test_garbage_is_no_error(text: bytes) -> None:
    load_of(text)


@pytest.fixture
def engine(serve: Callable[..., str]) -> tuple[str, dict[str, Any]]:
    says: dict[str, Any] = {"text": VLLM, "status": 200}
    app = FastAPI()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(says["text"], status_code=says["status"])

    return serve(app), says


async def busy(under_way: int) -> Admission:
    admission = Admission(Room(64, 64, 30.0))
    for _ in range(under_way):
        assert admission.try_enter(OPEN, "small", 1) is not None
    return admission


def limit_after_a_look(url: str, under_way: int) -> int:
    async def work() -> int:
        admission = await busy(under_way)
        await EngineWatch(admission, lambda: {"small": [url], "other": [url]}).tick()
        return admission.limits()["small"]

    return asyncio.run(work())


def test_a_long_queue_at_the_engine_is_held_back_here(engine: tuple[str, dict[str, Any]]) -> None:
    assert limit_after_a_look(engine[0], 64) == 36


@pytest.mark.parametrize(
    "says",
    [{"status": 500}, {"text": b"x 1"}, {"text": VLLM.replace(b"30.0", b"0.0").replace(b" 2.0", b" 0.0")}],
    ids=["failing", "not vLLM", "paused"],
)
def test_an_engine_that_tells_nothing_of_use_is_left_alone(
    engine: tuple[str, dict[str, Any]], says: dict[str, Any]
) -> None:
    engine[1].update(says)
    assert limit_after_a_look(engine[0], 64) == 64


def test_nobody_there_is_no_error() -> None:
    assert asyncio.run(ask("http://127.0.0.1:9")) is None
    assert limit_after_a_look("http://127.0.0.1:9", 64) == 64


def test_idle_models_are_not_asked() -> None:
    async def work() -> list[str]:
        asked: list[str] = []

        async def told(url: str) -> None:
            asked.append(url)

        admission = await busy(1)
        await EngineWatch(admission, lambda: {"small": ["a"]}, told).tick()
        assert admission.try_enter(OPEN, "small", 1) is not None
        await EngineWatch(admission, lambda: {"small": ["a", "b"]}, told).tick()
        return asked

    assert asyncio.run(work()) == ["a", "b"]
