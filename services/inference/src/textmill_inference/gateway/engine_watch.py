"""Asks the engines how many requests they run and how many wait there, so that admission holds back what they can't
run yet: an engine's own queue is first come, first served, and fair to nobody.

Reads vLLM's metrics, or ours where the engine is an inference service itself. An engine that tells none is left alone,
and so is one that runs nothing, which is paused or idle.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from textmill.http1 import HttpPool
from textmill_inference.gateway.admission import Admission

log = logging.getLogger(__name__)
_WITHIN_S = 2.0
_LARGEST_ANSWER = 4 * 1024 * 1024
_RUNNING, _WAITING = b"vllm:num_requests_running", b"vllm:num_requests_waiting"
_OUR_OWN, _OUR_WAITING = b"textmill_gateway_requests_in_flight", b"textmill_gateway_queue_length"
"""Ours counts those that wait as in flight."""
_SAMPLE = re.compile(
    rb"^(%s)(?:\{[^\n]*\})? ([0-9.e+]+)$" % b"|".join((_RUNNING, _WAITING, _OUR_OWN, _OUR_WAITING)), re.MULTILINE
)
Engines = Callable[[], Mapping[str, Iterable[str]]]
"""The addresses of the engines behind each model name."""


@dataclass(frozen=True)
class EngineLoad:
    running: int
    waiting: int


def load_of(metrics: bytes) -> EngineLoad | None:
    """From an engine's /metrics, over all label sets. None if it has no such metrics."""
    sums: dict[bytes, int] = {}
    for name, value in _SAMPLE.findall(metrics):
        with suppress(ValueError, OverflowError):
            sums[name] = sums.get(name, 0) + int(float(value))
    if _RUNNING in sums:
        return EngineLoad(sums[_RUNNING], sums.get(_WAITING, 0))
    if _OUR_OWN in sums:
        waiting = sums.get(_OUR_WAITING, 0)
        return EngineLoad(max(0, sums[_OUR_OWN] - waiting), waiting)
    return None


async def ask(url: str) -> EngineLoad | None:
    """None if the engine doesn't answer in time, or not with metrics."""
    pool = HttpPool(url, connect_timeout_s=_WITHIN_S)
    try:
        async with asyncio.timeout(_WITHIN_S):
            answer = await pool.get("/metrics", b"", _LARGEST_ANSWER)
    except (OSError, TimeoutError):
        return None
    finally:
        pool.close()
    return load_of(answer.body) if answer.status == 200 else None


@dataclass
class EngineWatch:
    """``tick`` is one look at the engines of all models that are busy."""

    admission: Admission
    engines: Engines
    ask: Callable[[str], Awaitable[EngineLoad | None]] = ask

    async def tick(self) -> None:
        busy = {model for model, under_way in self.admission.under_way().items() if under_way > 1}
        for model, urls in self.engines().items():
            if model not in busy:
                continue
            loads = [load for load in await asyncio.gather(*map(self.ask, urls)) if load is not None]
            running = sum(load.running for load in loads)
            if running:
                self.admission.observe(model, running, sum(load.waiting for load in loads))
