"""Whole stages by real worker processes against real servers: what they count adds up, whatever happens."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.inference.loadtest.scripted import GOOD, Scripted, answer

from textmill.contracts.load import (
    Bursts,
    ClosedLoop,
    ConstantRate,
    Expectation,
    Fixed,
    GivenPrompts,
    Message,
    Poisson,
    Stage,
    Target,
    Trace,
    TraceEntry,
    Traffic,
)
from textmill.contracts.loadtest import Clock, ErrorClass, Measured, NotSent, Phase, Second
from textmill.errors import BadRequest
from textmill_inference.loadtest import workers as workers_module
from textmill_inference.loadtest.calibration import null_server
from textmill_inference.loadtest.generator import Generator, check_files, workers_for
from textmill_inference.loadtest.orders import Go, Order
from textmill_inference.loadtest.truth import read_truth

MakeStage = Callable[..., Stage]


def run(stage: Stage, workers: int = 1, seconds: list[Second] | None = None, **more: object) -> Measured:
    generator = Generator(workers=workers, calibrate_s=0, look=False, **more)  # type: ignore[arg-type]
    return generator.run(stage, (seconds if seconds is not None else []).append, lambda: False)


def children() -> list[int]:
    """Worker processes of this one that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"loadtest.worker" in command:
            found.append(int(folder.name))
    return found


def test_an_open_loop_sends_what_is_scheduled_and_the_server_agrees(own_null_url: str, make_stage: MakeStage) -> None:
    seconds: list[Second] = []
    load = ConstantRate(rate_per_s=100)
    measured = run(make_stage(own_null_url, load, warm_up_s=0.3, cool_down_s=0.2), workers=2, seconds=seconds)
    counts = {phase: one.scheduled for phase, one in measured.counts.items()}
    assert counts == {Phase.WARM_UP: 30, Phase.MEASURED: 50, Phase.COOL_DOWN: 20}
    # Of the cool-down those that wait for a connection when it ends are not sent.
    assert [measured.counts[phase].sent for phase in (Phase.WARM_UP, Phase.MEASURED)] == [30, 50]
    assert (measured.counted.succeeded, measured.counted.under_way) == (50, 0)
    assert all(one.balanced for one in measured.counts.values())
    assert {clock: latency.samples for clock, latency in measured.latencies.items() if clock is not Clock.CONNECT} == {
        Clock.TTFT_SCHEDULED: 50, Clock.TTFT_SENT: 50, Clock.E2E_SCHEDULED: 50, Clock.E2E_SENT: 50,
        Clock.FIRST_BYTE: 50, Clock.LATENESS: 50, Clock.PER_TOKEN: 50, Clock.INTER_TOKEN: 100,
    }  # fmt: skip
    assert (measured.tokens.output, measured.tokens.source, measured.tokens.gaps) == (150, "usage", "tokens")
    assert sum(second.scheduled for second in seconds) == 100
    assert tuple(seconds) == measured.series
    truth = read_truth(own_null_url)
    assert 50 <= truth.requests <= 100
    assert measured.latencies[Clock.TTFT_SENT].min_ms >= 20


def test_a_closed_loop_keeps_its_clients_busy(own_null_url: str, make_stage: MakeStage) -> None:
    measured = run(make_stage(own_null_url, ClosedLoop(concurrency=8, ramp_s=0.1), requests=40), workers=2)
    assert measured.counted.succeeded == 40
    assert read_truth(own_null_url).requests == 40
    assert max(second.connections for second in measured.series) <= 8


def test_fresh_connections_completions_and_whole_answers(null_url: str, make_stage: MakeStage) -> None:
    traffic = Traffic(
        api="completions",
        prompts=GivenPrompts(conversations=((Message(content="one two"),),)),
        output=Fixed(value=4),
        stream=False,
    )
    target = Target(url=f"{null_url}/v1", model="m", fresh_connections=True)
    stage = make_stage(null_url, Bursts(size=5, period_s=0.2), target=target, traffic=traffic)
    measured = run(stage)
    assert measured.counted.succeeded == 15
    assert measured.latencies[Clock.CONNECT].samples == 15
    assert (measured.tokens.output, measured.tokens.prompt > 0) == (60, True)
    assert Clock.TTFT_SENT not in measured.latencies


def test_errors_are_counted_by_class_and_the_run_goes_on(scripted: Scripted, make_stage: MakeStage) -> None:
    scripted.answers = [
        GOOD, answer(b"no", "429 Too Many Requests"), answer(b"no", "500 Oops"), answer(b"no", "400 Bad Request"), None,
        GOOD[:-60] + Scripted.cut, answer(b"<html>", kind="text/html"),
    ]  # fmt: skip
    measured = run(make_stage(scripted.url, ConstantRate(rate_per_s=140)))
    assert measured.counted.succeeded == 10
    every = (
        ErrorClass.TOO_MANY, ErrorClass.SERVER_ERROR, ErrorClass.CLIENT_ERROR, ErrorClass.RESET,
        ErrorClass.BROKEN_STREAM, ErrorClass.WRONG_CONTENT,
    )  # fmt: skip
    assert measured.counted.errors == dict.fromkeys(every, 10)
    assert measured.counted.balanced
    assert measured.counted.error_share == pytest.approx(6 / 7)
    assert {sample.error for sample in measured.error_samples} == set(every)


def test_a_dead_target_is_a_finding(make_stage: MakeStage) -> None:
    measured = run(make_stage("http://127.0.0.1:1", ClosedLoop(concurrency=3, ramp_s=0)))
    assert measured.counted.errors.keys() == {ErrorClass.REFUSED}
    assert 3 <= measured.counted.sent <= 30  # it isn't hammered
    assert measured.counted.error_share == 1


def test_what_takes_too_long_is_given_up(scripted: Scripted, make_stage: MakeStage) -> None:
    scripted.answers = [Scripted.hang]
    measured = run(make_stage(scripted.url, ConstantRate(rate_per_s=20), timeout_s=0.3))
    assert measured.counted.errors == {ErrorClass.TIMEOUT: 10}
    assert measured.counted.balanced


def test_what_the_in_flight_limit_keeps_back_is_counted_as_failed(scripted: Scripted, make_stage: MakeStage) -> None:
    scripted.answers = [Scripted.hang]
    measured = run(make_stage(scripted.url, ConstantRate(rate_per_s=40), timeout_s=4.0, max_in_flight=4))
    assert measured.counted.sent == 4
    assert measured.counted.not_sent == {NotSent.IN_FLIGHT: 16}
    assert (measured.counted.failed, measured.counted.balanced) == (20, True)


def test_a_trace_is_replayed(scripted: Scripted, make_stage: MakeStage) -> None:
    entries = [TraceEntry(at_s=at, messages=(Message(content=f"turn {at}"),), output_tokens=2) for at in (0, 0.1, 0.4)]

    def read(key: str) -> Sequence[TraceEntry]:
        assert key == "traces/t.jsonl"
        return entries

    measured = run(make_stage(scripted.url, Trace(key="traces/t.jsonl", speed=2.0)), workers=2, read_trace=read)
    assert measured.counted.succeeded == 3
    assert sorted(request.rpartition(b"turn ")[2][:3] for request in scripted.requests) == [b'0"}', b"0.1", b"0.4"]
    assert all(b'"max_tokens":2,"min_tokens":2' in request for request in scripted.requests)


def test_a_trace_out_of_order_or_without_a_store_is_refused(make_stage: MakeStage) -> None:
    stage = make_stage("http://127.0.0.1:1", Trace(key="t"))
    with pytest.raises(BadRequest, match="no store"):
        run(stage)
    with pytest.raises(BadRequest, match="out of order"):
        run(stage, read_trace=lambda key: [TraceEntry(at_s=2), TraceEntry(at_s=1)])


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://a:b@127.0.0.1", "http://127.0.0.1:99999", "no.such.host."]
)
def test_a_target_that_is_no_address_is_refused(url: str, make_stage: MakeStage) -> None:
    with pytest.raises(BadRequest, match="target"):
        run(make_stage(url))


def test_cancelling_ends_all_workers(null_url: str, make_stage: MakeStage) -> None:
    seconds: list[Second] = []
    generator = Generator(workers=2, calibrate_s=0, look=False)
    stage = make_stage(null_url, ConstantRate(rate_per_s=20), seconds=600)
    measured = generator.run(stage, seconds.append, lambda: bool(seconds))
    assert children() == []
    assert measured.doubts[0].code == "cancelled"
    assert measured.counted.scheduled > 0
    assert measured.counted.balanced


def test_what_stopping_raises_comes_out_when_the_workers_are_gone(null_url: str, make_stage: MakeStage) -> None:
    class Drained(Exception):
        pass

    def stopping() -> bool:
        if children():
            raise Drained
        return False

    with pytest.raises(Drained):
        Generator(workers=1, calibrate_s=0, look=False).run(make_stage(null_url), print, stopping)
    assert children() == []


def struck(null_url: str, make_stage: MakeStage, strike: Callable[[int], None]) -> Measured:
    """A run of two workers, one of which is struck in its second second."""
    fell = threading.Event()

    def on_news(second: Second) -> None:
        if not fell.is_set():
            fell.set()
            strike(children()[0])

    stage = make_stage(null_url, ConstantRate(rate_per_s=100), seconds=4)
    return Generator(workers=2, calibrate_s=0, look=False).run(stage, on_news, lambda: False)


def test_a_killed_worker_makes_the_run_invalid(null_url: str, make_stage: MakeStage) -> None:
    measured = struck(null_url, make_stage, lambda pid: os.kill(pid, signal.SIGKILL))
    assert "worker_lost" in [doubt.code for doubt in measured.doubts]
    assert not measured.valid
    assert [health.lost for health in measured.health].count(True) == 1
    assert measured.counted.balanced
    assert children() == []


def test_a_worker_that_stands_still_for_good_is_lost(
    null_url: str, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "SILENT_S", 2.0)
    measured = struck(null_url, make_stage, lambda pid: os.kill(pid, signal.SIGSTOP))
    assert "worker_lost" in [doubt.code for doubt in measured.doubts]
    assert children() == []


def test_a_standstill_of_a_second_makes_the_run_invalid(null_url: str, make_stage: MakeStage) -> None:
    def strike(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()

    measured = struck(null_url, make_stage, strike)
    assert "late" in [doubt.code for doubt in measured.doubts]
    assert max(health.loop_lag_max_ms for health in measured.health) > 500
    assert measured.counted.sent == measured.counted.scheduled == 400  # late, but none is left out


def test_a_worker_whose_core_is_taken_makes_the_run_invalid(make_stage: MakeStage) -> None:
    """The server answers at once: then a worker wants more than its ninth of a core, however fast that is.

    In one run of five at the least: a null server that is slow itself hides the worker's own share.
    """
    core = min(os.sched_getaffinity(0))
    burn = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with null_server(Expectation(ttft_ms=0, itl_ms=0)) as url:
        burners = [subprocess.Popen([sys.executable, "-I", "-S", "-c", burn]) for _ in range(8)]
        try:
            stage = make_stage(url, ClosedLoop(concurrency=50, ramp_s=0.1), seconds=1.0)
            runs = ({doubt.code for doubt in run(stage, cores=(core,)).doubts} for _ in range(5))
            assert any(codes & {"late", "loop_lag", "starved"} for codes in runs)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()


def test_a_worker_doesnt_outlive_its_generator(null_url: str, make_stage: MakeStage) -> None:
    order = Order(
        stage=make_stage(null_url, seconds=600), worker=0, workers=1, host="127.0.0.1", port=1, tls=False,
        server_name="", host_header="x", path="/", run="r",
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "textmill_inference.loadtest.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker, worker.stdout as told:
        timer = threading.Timer(120, worker.kill)
        timer.start()
        worker.stdin.write(order.to_json() + b"\n" + Go(at=time.perf_counter()).to_json() + b"\n")
        worker.stdin.flush()
        lines = [told.readline() for _ in range(2)]
        worker.stdin.close()
        assert [line[:8] for line in lines] == [b'{"ready"', b'{"tick":']
        ended = worker.wait()
        timer.cancel()
        assert ended == 1  # by itself, not by the timer's kill


def test_too_low_a_file_limit_is_said_before_the_run(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 1_000))
    with pytest.raises(BadRequest, match=r"5064 open files a worker.*hard limit is 1000.*lower concurrency"):
        check_files(make_stage("http://127.0.0.1:1", ClosedLoop(concurrency=10_000)), workers=2)
    with pytest.raises(BadRequest, match="lower max_in_flight"):
        check_files(make_stage("http://127.0.0.1:1", Poisson(rate_per_s=1)), workers=1)
    check_files(make_stage("http://127.0.0.1:1", ClosedLoop(concurrency=900)), workers=1)


def test_workers_are_as_many_as_the_load_needs(make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    url = "http://127.0.0.1:1"
    assert workers_for(make_stage(url, ClosedLoop(concurrency=10)), 0) == 1
    assert workers_for(make_stage(url, ConstantRate(rate_per_s=1_000), tokens=100), 0) == 5
    assert workers_for(make_stage(url, Trace(key="t"), tokens=100), 1_000.0) == 5
    assert workers_for(make_stage(url, ConstantRate(rate_per_s=90_000)), 0) == 15
