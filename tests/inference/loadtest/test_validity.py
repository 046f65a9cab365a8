from dataclasses import replace

import pytest

from textmill.contracts.loadtest import Calibration, Clock, Counts, Latency, Phase, WorkerHealth
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.validity import Evidence, covers, doubts


def ms(*values: float) -> Latency:
    histogram = Histogram()
    for value in values:
        histogram.record(round(value * 1e3))
    latency = histogram.latency()
    assert latency is not None
    return latency


HEALTHY = WorkerHealth(
    worker=0, cpu_share=0.3, busiest_second=0.4, starved_share=0.01, loop_lag_p99_ms=1.0, loop_lag_max_ms=3.0
)
CALIBRATED = Calibration(
    when="before", seconds=3, concurrency=10, requests_per_s=100, chunks_per_s=1000, added_ttft_p50_ms=0.2,
    added_ttft_p99_ms=1.0, added_inter_token_p99_ms=0.5, lateness_p99_ms=0.8, cpu_share=0.2,
    cpu_us_per_request=200, cpu_us_per_chunk=15,
)  # fmt: skip
SOUND = Evidence(
    latencies={
        Clock.TTFT_SCHEDULED: ms(100),
        Clock.TTFT_SENT: ms(100),
        Clock.INTER_TOKEN: ms(50),
        Clock.LATENESS: ms(1),
    },
    health=(HEALTHY,),
    calibrations=(CALIBRATED,),
    counts={Phase.MEASURED: Counts(scheduled=10, sent=10, succeeded=10)},
    rates=(100.0, 1000.0),
)


def codes(evidence: Evidence) -> list[str]:
    return [doubt.code for doubt in doubts(evidence)]


def with_latency(**changed: Latency) -> Evidence:
    return replace(SOUND, latencies={**SOUND.latencies, **{Clock(name): value for name, value in changed.items()}})


def with_health(**changed: object) -> Evidence:
    return replace(SOUND, health=(HEALTHY, HEALTHY.model_copy(update={"worker": 1, **changed})))


def with_calibration(**changed: object) -> Evidence:
    return replace(SOUND, calibrations=(CALIBRATED.model_copy(update=changed),))


def test_a_sound_run_is_not_doubted() -> None:
    assert doubts(SOUND) == ()


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (with_latency(lateness=ms(10.5)), "late"),
        (with_health(loop_lag_p99_ms=10.5), "loop_lag"),
        (with_health(cpu_share=0.86), "cpu"),
        (with_health(starved_share=0.21), "starved"),
        (with_health(lost=True), "worker_lost"),
        (with_calibration(added_ttft_p99_ms=10.5), "budget"),
        (with_calibration(added_inter_token_p99_ms=5.5), "budget"),
        (with_calibration(requests_per_s=79.0), "uncalibrated"),
        (with_calibration(errors=1), "uncalibrated"),
        (with_calibration(chunks_per_s=799.0), "uncalibrated"),
        (replace(SOUND, calibrations=()), "uncalibrated"),
        (replace(SOUND, own_limits=1), "own_limit"),
        (replace(SOUND, cancelled=True), "cancelled"),
        (replace(SOUND, counts={Phase.MEASURED: Counts(scheduled=10, sent=9)}), "unbalanced"),
    ],
)
def test_each_rule_finds_its_fault(evidence: Evidence, code: str) -> None:
    (doubt,) = doubts(evidence)
    assert doubt.code == code
    assert doubt.value > doubt.limit or code == "uncalibrated"
    assert doubt.message


@pytest.mark.parametrize(
    "evidence",
    [
        with_latency(lateness=ms(9.5)),
        with_health(loop_lag_p99_ms=9.5, cpu_share=0.85, starved_share=0.2),
        with_calibration(added_ttft_p99_ms=9.5, added_inter_token_p99_ms=4.5, requests_per_s=81.0, chunks_per_s=801.0),
        with_health(starved_share=None),
        replace(SOUND, calibrations=(), expected_calibration=False),
    ],
)
def test_just_below_its_limit_nothing_is_doubted(evidence: Evidence) -> None:
    assert codes(evidence) == []


def test_what_is_allowed_grows_with_the_result_and_is_never_below_2_ms() -> None:
    assert codes(with_latency(ttft_scheduled=ms(1_000), lateness=ms(90))) == []
    fast = with_latency(ttft_scheduled=ms(3), ttft_sent=ms(3), lateness=ms(1.9))
    assert codes(fast) == []
    assert codes(with_latency(ttft_scheduled=ms(3), lateness=ms(2.1))) == ["late"]


def test_whole_answers_are_judged_by_their_end() -> None:
    latencies = {Clock.E2E_SCHEDULED: ms(500), Clock.E2E_SENT: ms(500), Clock.LATENESS: ms(40)}
    assert codes(replace(SOUND, latencies=latencies)) == []
    assert codes(replace(SOUND, latencies=latencies | {Clock.LATENESS: ms(60)})) == ["late"]


def test_a_calibration_holds_for_its_pace_and_slower_ones() -> None:
    assert covers(CALIBRATED, (10, 20))
    assert covers(CALIBRATED, (124, 1_240))
    assert not covers(CALIBRATED, (126, 0))
    assert not covers(CALIBRATED, (0, 1_260))
