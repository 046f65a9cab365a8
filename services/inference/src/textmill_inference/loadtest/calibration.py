"""What the generator adds by itself: a short run of one worker against the null server, whose own times are known."""

import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from textmill.contracts.load import (
    Bursts,
    ClosedLoop,
    ConstantRate,
    Expectation,
    Fixed,
    Load,
    Poisson,
    Ramp,
    Stage,
    Target,
    Trace,
    TraceEntry,
)
from textmill.contracts.loadtest import Calibration, Clock, Phase
from textmill.errors import Transient
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.orders import Order
from textmill_inference.loadtest.schedule import part
from textmill_inference.loadtest.stage_run import Run, run_workers
from textmill_inference.loadtest.traffic import mean_length
from textmill_inference.loadtest.truth import TruthRead, read_truth

WARM_UP_S = 1.0
LONGEST_ANSWER_S = 1.0
"""Answers are cut to this, so that a short run sees many of them."""
_PEAK_S = 10.0


def calibrate(
    stage: Stage,
    workers: int,
    seconds: float,
    when: Literal["before", "after"],
    peak_rate: float,
    cpus: tuple[int | None, int | None],
    stopping: Callable[[], bool],
) -> Calibration | None:
    """One worker with its part of the load, at the pace that ``stage.expects``; None when it was stopped.

    ``peak_rate`` is a trace's; ``cpus`` are the worker's core and the null server's, None for any. Raises
    ``Transient`` when they don't start.
    """
    stage = shortened(stage)
    with null_server(stage.expects, cpus[1]) as url:
        played = _played(stage, workers, seconds, peak_rate, url)
        port = int(url.rpartition(":")[2])
        order = Order(
            stage=played, worker=0, workers=1, host="127.0.0.1", port=port, tls=False, server_name="",
            host_header=f"127.0.0.1:{port}", path=f"/v1/{_PATHS[stage.traffic.api]}", run="calibration", cpu=cpus[0],
        )  # fmt: skip
        run = run_workers([order], lambda second: None, stopping)
        if run.cancelled:
            return None
        return _compared(when, played, run, read_truth(url))


@contextlib.contextmanager
def null_server(expects: Expectation, cpu: int | None = None) -> Iterator[str]:
    """The URL of one on loopback, in a process of its own, for as long as the context lasts."""
    command = [sys.executable, "-m", "textmill_inference.loadtest.null_server"]
    command += ["--ttft-ms", str(expects.ttft_ms), "--itl-ms", str(expects.itl_ms)]
    command += [] if cpu is None else ["--cpu", str(cpu)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            if not port:
                raise Transient("the null server didn't start; its error is in this service's log")
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            process.kill()


def peak_rate(entries: Iterable[TraceEntry], speed: float) -> float:
    """Requests a second in a trace's busiest ten seconds."""
    windows = Counter(int(entry.at_s / speed / _PEAK_S) for entry in entries)
    return max(windows.values(), default=0) / _PEAK_S


_PATHS = {"chat": "chat/completions", "completions": "completions"}


def _played(stage: Stage, workers: int, seconds: float, peak: float, url: str) -> Stage:
    """The stage as one worker has it, against the null server."""
    return stage.model_copy(
        update={
            "target": Target(url=url, model="null", fresh_connections=stage.target.fresh_connections),
            "load": load_of_one(stage.load, workers, peak),
            "warm_up_s": WARM_UP_S,
            "seconds": seconds,
            "cool_down_s": 0.0,
            "requests": None,
        }
    )


def shortened(stage: Stage) -> Stage:
    """With answers of at most ``LONGEST_ANSWER_S``, and a first token that comes sooner in proportion: or the chunks a
    second would be fewer than the run's."""
    itl_s, whole = stage.expects.itl_ms / 1e3, max(1, round(mean_length(stage.traffic.output)))
    tokens = min(whole, 1 + int(LONGEST_ANSWER_S / itl_s)) if itl_s else whole
    traffic = stage.traffic.model_copy(update={"output": Fixed(value=tokens), "exact_output": False})
    expects = stage.expects.model_copy(update={"ttft_ms": stage.expects.ttft_ms * tokens / whole})
    return stage.model_copy(update={"traffic": traffic, "expects": expects})


def load_of_one(load: Load, workers: int, peak: float) -> Load:
    """What falls to one of so many workers; of a changing rate the highest."""
    match load:
        case ClosedLoop():
            return ClosedLoop(concurrency=part(load.concurrency, 0, workers), ramp_s=WARM_UP_S)
        case ConstantRate():
            return ConstantRate(rate_per_s=load.rate_per_s / workers)
        case Poisson():
            return Poisson(rate_per_s=load.rate_per_s / workers, seed=load.seed)
        case Bursts():
            return Bursts(
                size=part(load.size, 0, workers), period_s=min(load.period_s, 1.0), rate_per_s=load.rate_per_s / workers
            )
        case Ramp():
            return ConstantRate(rate_per_s=max(load.from_per_s, load.to_per_s) / workers)
        case Trace():
            return ConstantRate(rate_per_s=max(0.1, peak / workers))


def _compared(when: Literal["before", "after"], stage: Stage, run: Run, truth: TruthRead) -> Calibration:
    """The generator's figures beside the null server's."""
    gathered = run.gathered
    streams = stage.traffic.stream
    own = gathered.counted(Clock.TTFT_SENT if streams else Clock.E2E_SENT)
    true = Histogram(truth.ttft if streams else truth.e2e)
    health = gathered.health()[0]
    ends = gathered.ends
    requests, chunks = sum(end.requests for end in ends), sum(end.chunks for end in ends)
    cpu_us = sum(end.cpu_s for end in ends) * 1e6
    seconds = sum(end.window_s for end in ends) or stage.seconds
    counts = gathered.counts().get(Phase.MEASURED)
    return Calibration(
        when=when,
        seconds=seconds,
        concurrency=max((second.in_flight for second in gathered.series), default=0),
        requests_per_s=sum(end.window_succeeded for end in ends) / seconds,
        chunks_per_s=sum(end.window_tokens for end in ends) / seconds,
        added_ttft_p50_ms=_added(own, true, 50),
        added_ttft_p99_ms=_added(own, true, 99),
        added_inter_token_p99_ms=_added(gathered.counted(Clock.INTER_TOKEN), Histogram(truth.inter_token), 99),
        lateness_p99_ms=(gathered.counted(Clock.LATENESS).percentile(99) or 0.0) / 1e3,
        cpu_share=health.cpu_share,
        cpu_us_per_request=cpu_us / max(1, requests),
        cpu_us_per_chunk=cpu_us / max(1, chunks),
        errors=0 if counts is None else counts.failed,
    )


def _added(own: Histogram, true: Histogram, percent: float) -> float:
    """Of one percentile, in ms."""
    measured, truth = own.percentile(percent), true.percentile(percent)
    return 0.0 if measured is None or truth is None else (measured - truth) / 1e3
