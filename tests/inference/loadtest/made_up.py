"""Stages that no generator measured: a queue in arithmetic, so that tests know the truth and take no time."""

import math
import random

from textmill.contracts.load import ClosedLoop, GivenPrompts, Message, Stage, Target, Traffic
from textmill.contracts.loadtest import (
    Calibration,
    Clock,
    Counts,
    Doubt,
    ErrorClass,
    ErrorSample,
    Measured,
    Phase,
    Second,
    Tokens,
    WorkerHealth,
)
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.levels import load_of

TRAFFIC = Traffic(prompts=GivenPrompts(conversations=((Message(content="Why?"),),)))


def histogram_of(values_ms):
    histogram = Histogram()
    for value in values_ms:
        histogram.record(round(value * 1e3))
    return histogram


def measured(
    load=8.0, ttft_ms=(100.0,) * 700, itl_ms=(20.0,) * 3000, failed=0, seconds=20.0, stage=None, valid=True,
    late_ms=0.1, started_at=1_000.0, detail="", server_times=None, notes=(),
):  # fmt: skip
    """A stage in which each of ``ttft_ms`` was one answered request with ten gaps of ``itl_ms``' mean."""
    stage = stage or Stage(
        target=Target(url="http://x", model="m"), load=ClosedLoop(concurrency=round(load)), traffic=TRAFFIC
    )
    gap = sum(itl_ms) / len(itl_ms) if itl_ms else 0.0
    e2e = [value + 10 * gap for value in ttft_ms]
    samples = {
        Clock.TTFT_SENT: [v - late_ms for v in ttft_ms],
        Clock.TTFT_SCHEDULED: ttft_ms,
        Clock.E2E_SENT: [v - late_ms for v in e2e],
        Clock.E2E_SCHEDULED: e2e,
        Clock.INTER_TOKEN: itl_ms,
        Clock.PER_TOKEN: [gap] * len(ttft_ms),
        Clock.LATENESS: [late_ms] * len(ttft_ms),
    }
    latencies = {clock: found for clock, v in samples.items() if (found := histogram_of(v).latency()) is not None}
    answered = len(ttft_ms)
    series = tuple(
        Second(
            at_s=second, phase=Phase.WARM_UP if second < stage.warm_up_s else Phase.MEASURED, scheduled=10, sent=10,
            succeeded=10, output_tokens=110, in_flight=round(load), ttft_p50_ms=100.0 + second, ttft_p99_ms=150.0,
        )
        for second in range(round(stage.warm_up_s + seconds))
    )  # fmt: skip
    doubt = Doubt(code="late", message="requests were sent up to 90 ms late, 5 ms are allowed", value=90, limit=5)
    return Measured(
        stage=stage,
        started_at=started_at,
        seconds=seconds,
        workers=1,
        counts={
            Phase.MEASURED: Counts(
                scheduled=answered + failed, sent=answered + failed, succeeded=answered,
                errors={ErrorClass.SERVER_ERROR: failed} if failed else {},
            )
        },
        latencies=latencies,
        server_times=server_times or {},
        tokens=Tokens(prompt=5 * answered, output=11 * answered, source="usage"),
        requests_per_s=answered / seconds,
        output_tokens_per_s=11 * answered / seconds,
        series=series,
        calibrations=(
            Calibration(
                when="before", seconds=3, concurrency=8, requests_per_s=80, chunks_per_s=800, added_ttft_p50_ms=0.05,
                added_ttft_p99_ms=0.4, added_inter_token_p99_ms=0.3, lateness_p99_ms=0.2, cpu_share=0.1,
                cpu_us_per_request=50, cpu_us_per_chunk=12,
            ),
        ),
        health=(
            WorkerHealth(
                worker=0, cpu_share=0.2, busiest_second=0.3, starved_share=0.0, loop_lag_p99_ms=0.5, loop_lag_max_ms=2
            ),
        ),
        error_samples=tuple(
            ErrorSample(error=ErrorClass.SERVER_ERROR, at_s=1, status=500, detail=text) for text in [detail] if text
        ),
        doubts=() if valid else (doubt,),
        notes=notes,
    )  # fmt: skip


class MadeUpServer:
    """A generator's stand-in with a server of known ``capacity``: beyond it the queue grows, and TTFT with it.

    Each stage finds the capacity moved by a log-normal share of ``spread``.
    """

    def __init__(self, capacity, spread=0.02, seed=0, spoils=lambda load: False, failing=0, detail=""):
        self.capacity = capacity
        self.stages = []
        self._rng = random.Random(seed)
        self._spread = spread
        self._spoils = spoils
        self._failing = failing
        self._detail = detail
        self.now = 1_000.0

    def run(self, stage, on_news, stopping):
        stopping()
        self.stages.append(stage)
        _, load = load_of(stage.load)
        here = self.capacity * math.exp(self._rng.gauss(0, self._spread))
        base = 100.0 if load <= here else 100.0 + 4_000.0 * (load / here - 1) + 400.0
        ttft = [base * math.exp(self._rng.gauss(0, 0.1)) for _ in range(0 if self._failing else 700)]
        found = measured(
            load, ttft, itl_ms=[20.0] * 50 if ttft else (), failed=self._failing, stage=stage,
            seconds=700 / min(load, here) / 3, valid=not self._spoils(load), started_at=self.now, detail=self._detail,
        )  # fmt: skip
        self.now += 25.0
        for second in found.series[:3]:
            on_news(second)
        return found
