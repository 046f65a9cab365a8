"""When a run says nothing about its target, since the generator itself could explain it. Rules, pure.

A figure is only as good as the clock that took it. Each rule sets what the generator did to itself against the result:
a tenth of it may be the generator's own (``OWN_SHARE``), and 2 ms always (``FLOOR_MS``: what timers of 1 ms and one
turn of the scheduler come to, and the lateness that an open loop is rated for).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from textmill.contracts.loadtest import Calibration, Clock, Counts, Doubt, Latency, Phase, WorkerHealth
from textmill_inference.loadtest.histogram import Histogram

OWN_SHARE = 0.10
FLOOR_MS = 2.0
MOST_CPU = 0.85
"""From here on requests queue for the generator's core: at 85 % random work waits for three times its own length."""
MOST_STARVED = 0.20
"""Ready to run, but the core was taken: for a fifth of the time its clocks were read too late, by nobody knows what."""
COVERED = 1.25
"""A calibration holds for up to so many times its rates."""


@dataclass(frozen=True)
class Evidence:
    """What the rules judge. ``own_limits``: connections that this machine, not the target, refused."""

    latencies: Mapping[Clock, Latency]
    health: Sequence[WorkerHealth]
    calibrations: Sequence[Calibration]
    counts: Mapping[Phase, Counts]
    own_limits: int = 0
    cancelled: bool = False
    expected_calibration: bool = True
    rates: tuple[float, float] = field(default=(0.0, 0.0))
    """Requests and tokens a second of one worker in the run."""


def doubts(evidence: Evidence) -> tuple[Doubt, ...]:
    found = [
        *_whole(evidence),
        *_late(evidence),
        *_lagging(evidence),
        *_busy(evidence),
        *_budget(evidence),
    ]
    return tuple(found)


def covers(calibration: Calibration, rates: tuple[float, float]) -> bool:
    """Whether it was made at the pace of the run, or a faster one."""
    requests, tokens = rates
    return requests <= COVERED * calibration.requests_per_s and tokens <= COVERED * calibration.chunks_per_s


def p99_ms(latencies: Mapping[Clock, Latency], clock: Clock) -> float | None:
    """For any sample: a rule claims nothing."""
    latency = latencies.get(clock)
    us = Histogram.decode(latency.histogram).percentile(99) if latency is not None else None
    return None if us is None else us / 1e3


def _whole(evidence: Evidence) -> list[Doubt]:
    """Samples are missing."""
    found = []
    lost = [health.worker for health in evidence.health if health.lost]
    if evidence.cancelled:
        found.append(Doubt(code="cancelled", message="the run was cancelled before its end", value=1, limit=0))
    if lost:
        message = f"worker {lost[0]} ended or stood still before its part was done: its samples are missing; run again"
        found.append(Doubt(code="worker_lost", message=message, value=len(lost), limit=0))
    unbalanced = [phase for phase, counts in evidence.counts.items() if not counts.balanced]
    if unbalanced and not lost:
        message = f"the counts of {unbalanced[0]} don't add up: a fault of the load generator; report it"
        found.append(Doubt(code="unbalanced", message=message, value=len(unbalanced), limit=0))
    if evidence.own_limits:
        message = (
            f"this machine refused {evidence.own_limits} connections (files, ports or memory ran out);"
            " raise its limits or lower the load"
        )
        found.append(Doubt(code="own_limit", message=message, value=evidence.own_limits, limit=0))
    return found


def _late(evidence: Evidence) -> list[Doubt]:
    """Requests went out later than they were due, by the generator's own doing."""
    value, limit = p99_ms(evidence.latencies, Clock.LATENESS), _limit(evidence, Clock.TTFT_SCHEDULED)
    if value is None or value <= limit:
        return []
    message = (
        f"requests were sent up to {value:.1f} ms late (p99), {limit:.1f} ms are allowed for these latencies:"
        " the load is above what the generator can send; give it more cores or lower the load"
    )
    return [Doubt(code="late", message=message, value=value, limit=limit)]


def _lagging(evidence: Evidence) -> list[Doubt]:
    """Answers lay unread, and their clocks were read when they weren't news any more."""
    limit = _limit(evidence, Clock.TTFT_SENT)
    worst = max(evidence.health, key=lambda health: health.loop_lag_p99_ms, default=None)
    if worst is None or worst.loop_lag_p99_ms <= limit:
        return []
    message = (
        f"worker {worst.worker} came to its sockets up to {worst.loop_lag_p99_ms:.1f} ms late (p99 by time), "
        f"{limit:.1f} ms are allowed for these latencies; is the machine busy with something else?"
    )
    return [Doubt(code="loop_lag", message=message, value=worst.loop_lag_p99_ms, limit=limit)]


def _busy(evidence: Evidence) -> list[Doubt]:
    found = []
    for health in evidence.health:
        if health.cpu_share > MOST_CPU:
            message = (
                f"worker {health.worker} used {health.cpu_share:.0%} of its core: it measures its own queue;"
                " give the generator more cores or lower the load"
            )
            found.append(Doubt(code="cpu", message=message, value=health.cpu_share, limit=MOST_CPU))
        if health.starved_share is not None and health.starved_share > MOST_STARVED:
            message = (
                f"worker {health.worker} stood in line for a core for {health.starved_share:.0%} of the time:"
                " something else uses it; run the generator on cores of its own"
            )
            found.append(Doubt(code="starved", message=message, value=health.starved_share, limit=MOST_STARVED))
    return found


def _budget(evidence: Evidence) -> list[Doubt]:
    """What the generator adds by itself at this pace, against a server whose times are known."""
    if not evidence.calibrations:
        if not evidence.expected_calibration or evidence.cancelled:
            return []
        message = "there is no calibration, so what the generator adds isn't known"
        return [Doubt(code="uncalibrated", message=message, value=0, limit=1)]
    last, found = evidence.calibrations[-1], []
    if last.errors:
        message = f"{last.errors} requests failed against the generator's own null server: it can't bear this load here"
        found.append(Doubt(code="uncalibrated", message=message, value=last.errors, limit=0))
    limit = _limit(evidence, Clock.TTFT_SENT)
    if last.added_ttft_p99_ms > limit:
        message = (
            f"against a server of known times the generator itself added {last.added_ttft_p99_ms:.1f} ms to the p99 of"
            f" the first token, {limit:.1f} ms are allowed for these latencies; give it more cores or lower the load"
        )
        found.append(Doubt(code="budget", message=message, value=last.added_ttft_p99_ms, limit=limit))
    between = max(FLOOR_MS, OWN_SHARE * (p99_ms(evidence.latencies, Clock.INTER_TOKEN) or 0.0))
    if last.added_inter_token_p99_ms > between:
        message = (
            f"against a server of known times the generator itself added {last.added_inter_token_p99_ms:.1f} ms to the"
            f" p99 between tokens, {between:.1f} ms are allowed for these; give it more cores or lower the load"
        )
        found.append(Doubt(code="budget", message=message, value=last.added_inter_token_p99_ms, limit=between))
    if not covers(last, evidence.rates):
        message = (
            f"calibrated at {last.requests_per_s:.0f} requests/s and {last.chunks_per_s:.0f} chunks/s a worker, run at "
            f"{evidence.rates[0]:.0f} and {evidence.rates[1]:.0f}: the budget doesn't hold for that; lower the load"
        )
        found.append(Doubt(code="uncalibrated", message=message, value=evidence.rates[1], limit=last.chunks_per_s))
    return found


def _limit(evidence: Evidence, clock: Clock) -> float:
    """What the generator may add to this clock's p99. Without streaming it is the whole answer that counts."""
    whole = Clock.E2E_SENT if clock is Clock.TTFT_SENT else Clock.E2E_SCHEDULED
    result = p99_ms(evidence.latencies, clock) or p99_ms(evidence.latencies, whole) or 0.0
    return max(FLOOR_MS, OWN_SHARE * result)
