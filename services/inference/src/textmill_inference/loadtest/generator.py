"""The load generator's entry: one stage in, what was measured out. Knows nothing of jobs, reports or stores."""

import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from textmill.contracts.base import new_id
from textmill.contracts.load import ClosedLoop, Expectation, Stage, Trace, TraceEntry
from textmill.contracts.loadtest import Calibration, Clock, Latency, Measured, Second
from textmill.errors import BadRequest
from textmill_inference.loadtest.address import Endpoint, endpoint
from textmill_inference.loadtest.calibration import calibrate, peak_rate
from textmill_inference.loadtest.look import Look, look
from textmill_inference.loadtest.orders import Order
from textmill_inference.loadtest.schedule import mean_rate
from textmill_inference.loadtest.stage_run import Run, run_workers
from textmill_inference.loadtest.traffic import mean_length
from textmill_inference.loadtest.validity import Evidence, covers, doubts
from textmill_inference.loadtest.worker import files_needed

ReadTrace = Callable[[str], Iterable[TraceEntry]]
"""Gives the entries of the trace stored under a key. Called once a stage."""
OnNews = Callable[[Second], None]
"""Told each second of the stage when it is over, in the caller's thread."""
Stopping = Callable[[], bool]
"""Asked ten times a second. True ends the run at once; what it raises comes out of ``run``, the workers gone."""
CPU_S_PER_REQUEST, CPU_S_PER_TOKEN, PLANNED_CPU = 150e-6, 15e-6, 0.35
"""For choosing the number of workers: what a request and a token cost, and how busy a worker may be by that."""


@dataclass(frozen=True)
class _Plan:
    """What is found out and decided before a stage runs."""

    stage: Stage
    where: Endpoint
    look: Look
    workers: int
    trace: str | None
    peak_rate: float


@dataclass(frozen=True)
class Generator:
    """Runs stages with worker processes, one a core.

    ``key`` is sent to the stage's target as a bearer token and is in nothing that comes back. ``workers`` None means
    as many as the load needs and the machine has cores for; one is left to the rest of the machine where there are
    several. ``cores`` are the ones that workers stay on; None leaves that to the kernel. ``calibrate_s`` 0 leaves
    calibration out: a run then tells only what it saw of itself. ``look`` False sends nothing before the run.
    """

    key: str = ""
    workers: int | None = None
    cores: tuple[int, ...] | None = None
    calibrate_s: float = 3.0
    look: bool = True
    read_trace: ReadTrace | None = None

    def run(self, stage: Stage, on_news: OnNews, stopping: Stopping) -> Measured:
        """Blocks until the stage is over: calibration, warm-up, counted part, cool-down, and what is under way.

        A cancelled run (``stopping`` gave True) comes back with what it has so far, marked with the doubt "cancelled".

        Raises:
            BadRequest: the target's URL or the trace can't be used, or the file limit is too low for the load; the
                message says what to change.
            Transient: the workers couldn't be started.
        """
        where = endpoint(stage.target)
        with self._trace(stage) as (trace, peak):
            workers = self.workers or workers_for(stage, peak)
            check_files(stage, workers)
            seen = look(stage, where, self.key, stopping) if self.look else Look()
            plan = _Plan(stage, where, seen, workers, trace, peak)
            calibrations = self._calibrated(plan, "before", stopping)
            started_at = time.time()
            run = run_workers(list(self._orders(plan)), on_news, stopping)
        calibrations += self._calibrated_after(plan, run, calibrations, stopping)
        return _measured(plan, run, started_at, calibrations, self.calibrate_s > 0)

    def _orders(self, plan: _Plan) -> Iterator[Order]:
        run = new_id("lt")[-12:]
        for worker in range(plan.workers):
            yield Order(
                stage=plan.stage,
                worker=worker,
                workers=plan.workers,
                host=plan.where.host,
                port=plan.where.port,
                tls=plan.where.tls,
                server_name=plan.where.server_name,
                host_header=plan.where.host_header,
                path=plan.where.path(plan.stage.traffic.api),
                run=run,
                key=self.key,
                gauge=plan.look.gauge,
                continuous_usage=plan.look.continuous,
                trace=plan.trace,
                cpu=self.cores[worker % len(self.cores)] if self.cores else None,
            )

    def _calibrated(
        self, plan: _Plan, when: Literal["before", "after"], stopping: Stopping, expects: Expectation | None = None
    ) -> list[Calibration]:
        if self.calibrate_s <= 0:
            return []
        stage = plan.stage if expects is None else plan.stage.model_copy(update={"expects": expects})
        cpus = (self.cores[0] if self.cores else None, _other_core(self.cores))
        made = calibrate(stage, plan.workers, self.calibrate_s, when, plan.peak_rate, cpus, stopping)
        return [] if made is None else [made]

    def _calibrated_after(
        self, plan: _Plan, run: Run, before: Sequence[Calibration], stopping: Stopping
    ) -> list[Calibration]:
        """Once more, at the target's own pace, when that wasn't what was played before."""
        latencies = run.gathered.latencies()
        paces = Clock.TTFT_SENT in latencies and Clock.PER_TOKEN in latencies
        if run.cancelled or not before or not paces:
            return []
        rates = _rates(run, plan.workers)
        slower = max(rates[0] / max(1e-9, before[-1].requests_per_s), rates[1] / max(1e-9, before[-1].chunks_per_s))
        in_doubt = any(doubt.code == "budget" for doubt in doubts(_evidence(plan, run, before, expected=True)))
        if covers(before[-1], rates) and not (in_doubt and slower < 0.75):
            return []
        expects = Expectation(ttft_ms=_median(latencies[Clock.TTFT_SENT]), itl_ms=_median(latencies[Clock.PER_TOKEN]))
        return self._calibrated(plan, "after", stopping, expects)

    @contextmanager
    def _trace(self, stage: Stage) -> Iterator[tuple[str | None, float]]:
        """The trace in a file that workers can read, and its highest rate."""
        if not isinstance(stage.load, Trace):
            yield None, 0.0
            return
        if self.read_trace is None:
            raise BadRequest("this load test replays a trace, but there is no store to read it from")
        entries = list(self.read_trace(stage.load.key))
        if not entries or any(one.at_s > other.at_s for one, other in pairwise(entries)):
            raise BadRequest(f"the trace {stage.load.key!r} is empty or out of order: at_s must never fall")
        with tempfile.NamedTemporaryFile("wb", prefix="textmill-trace-", suffix=".jsonl") as file:
            file.writelines(entry.to_json() + b"\n" for entry in entries)
            file.flush()
            yield file.name, peak_rate(entries, stage.load.speed)


def workers_for(stage: Stage, peak: float) -> int:
    """As many as the load needs by what calibration usually finds, within the machine's cores."""
    cores = len(os.sched_getaffinity(0))
    tokens, expects = mean_length(stage.traffic.output), stage.expects
    if isinstance(stage.load, ClosedLoop):
        answer_s = (expects.ttft_ms + expects.itl_ms * tokens) / 1e3
        rate = stage.load.concurrency / max(0.01, answer_s)
    else:
        rate = mean_rate(stage.load, stage.seconds) or peak
    busy = rate * (CPU_S_PER_REQUEST + tokens * CPU_S_PER_TOKEN)
    return max(1, min(math.ceil(busy / PLANNED_CPU), cores - 1))


def check_files(stage: Stage, workers: int) -> None:
    """Raises ``BadRequest`` when a worker couldn't open all the connections that the load may need."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = files_needed(stage, workers)
    if hard != resource.RLIM_INFINITY and needed > hard:
        what = "concurrency" if isinstance(stage.load, ClosedLoop) else "max_in_flight"
        raise BadRequest(
            f"the load needs {needed} open files a worker, but this machine's hard limit is {hard}:"
            f" raise it (ulimit -Hn, LimitNOFILE) or lower {what}"
        )


def _measured(
    plan: _Plan, run: Run, started_at: float, calibrations: Sequence[Calibration], expected: bool
) -> Measured:
    gathered = run.gathered
    seconds = max((end.window_s for end in gathered.ends), default=0.0)
    latencies = gathered.latencies()
    return Measured(
        stage=plan.stage,
        started_at=started_at,
        seconds=seconds,
        workers=plan.workers,
        counts=gathered.counts(),
        latencies=latencies,
        server_times=gathered.server_times(),
        tokens=gathered.tokens(),
        requests_per_s=sum(end.window_succeeded for end in gathered.ends) / max(1e-9, seconds),
        output_tokens_per_s=sum(end.window_tokens for end in gathered.ends) / max(1e-9, seconds),
        series=tuple(gathered.series),
        calibrations=tuple(calibrations),
        health=gathered.health(),
        slowest=gathered.slowest(),
        error_samples=gathered.error_samples(),
        doubts=doubts(_evidence(plan, run, calibrations, expected)),
        notes=tuple(note for note in (plan.look.note,) if note),
    )


def _evidence(plan: _Plan, run: Run, calibrations: Sequence[Calibration], expected: bool) -> Evidence:
    gathered = run.gathered
    return Evidence(
        latencies=gathered.latencies(),
        health=gathered.health(),
        calibrations=calibrations,
        counts=gathered.counts(),
        own_limits=sum(end.own_limits for end in gathered.ends),
        cancelled=run.cancelled,
        expected_calibration=expected,
        rates=_rates(run, plan.workers),
    )


def _rates(run: Run, workers: int) -> tuple[float, float]:
    """Requests and tokens a second of one worker."""
    ends = run.gathered.ends
    seconds = max((end.window_s for end in ends), default=0.0)
    if seconds <= 0:
        return 0.0, 0.0
    share = seconds * workers
    return sum(end.window_succeeded for end in ends) / share, sum(end.window_tokens for end in ends) / share


def _median(latency: Latency) -> float:
    found = latency.at(50.0)
    return latency.mean_ms if found is None else found.ms


def _other_core(cores: tuple[int, ...] | None) -> int | None:
    """One that workers don't use, for the null server, if they have cores of their own."""
    if cores is None:
        return None
    return next((core for core in sorted(os.sched_getaffinity(0)) if core not in cores), None)
