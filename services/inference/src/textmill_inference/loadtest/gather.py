"""Puts together what the workers report: seconds over all of them, and at the end the whole; nothing is left out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from textmill.contracts.load import Stage
from textmill.contracts.loadtest import (
    Clock,
    Counts,
    ErrorSample,
    Latency,
    NotSent,
    Phase,
    Second,
    SlowRequest,
    Tokens,
    WorkerHealth,
)
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.orders import Ended, PhaseTally, Tick

MOST_SLOW = 20
_K = TypeVar("_K", bound=str)


@dataclass
class WorkerRecord:
    """What one worker has reported of itself."""

    last_s: int = -1
    lost: bool = False
    ended: Ended | None = None
    cpu: list[float] = field(default_factory=list)
    starved: list[float] = field(default_factory=list)
    lag: Histogram = field(default_factory=Histogram)
    in_flight: int = 0


class Gathering:
    """One stage's run in the making."""

    def __init__(self, stage: Stage, workers: Sequence[int]) -> None:
        self._stage = stage
        self.workers = {worker: WorkerRecord() for worker in workers}
        self._counted: dict[Clock, Histogram] = defaultdict(Histogram)
        self._phases: dict[Phase, list[PhaseTally]] = defaultdict(list)
        self._seconds: dict[int, list[Tick]] = defaultdict(list)
        self.series: list[Second] = []

    def take(self, tick: Tick) -> Iterator[Second]:
        """Gives the seconds that all workers have now reported."""
        record = self.workers[tick.worker]
        record.last_s, record.in_flight = tick.at_s, tick.in_flight
        if tick.in_window:
            record.cpu.append(tick.cpu_share)
            record.lag.merge(tick.loop_lag)
            if tick.starved_share is not None:
                record.starved.append(tick.starved_share)
        for clock, buckets in tick.counted.items():
            self._counted[clock].merge(buckets)
        for phase, tally in tick.phases.items():
            self._phases[phase].append(tally)
        self._seconds[tick.at_s].append(tick)
        heard_to = min((one.last_s for one in self.workers.values() if not one.lost and one.ended is None), default=-1)
        yield from self._close(heard_to - 1)

    def rest(self) -> Iterator[Second]:
        """The seconds that are left when no worker reports any more."""
        yield from self._close(max(self._seconds, default=-1))

    def counts(self) -> dict[Phase, Counts]:
        return {phase: self._sum(phase, tallies) for phase, tallies in sorted(self._phases.items())}

    def latencies(self) -> dict[Clock, Latency]:
        found = {clock: histogram.latency() for clock, histogram in sorted(self._counted.items())}
        return {clock: latency for clock, latency in found.items() if latency is not None}

    def counted(self, clock: Clock) -> Histogram:
        return self._counted[clock]

    @property
    def ends(self) -> list[Ended]:
        return [record.ended for record in self.workers.values() if record.ended is not None]

    def tokens(self) -> Tokens:
        return Tokens(
            prompt=sum(end.prompt_tokens for end in self.ends),
            output=sum(end.output_tokens for end in self.ends),
            source=_source([end.sources for end in self.ends]),
            gaps=_gaps([end.gaps for end in self.ends]),
        )

    def server_times(self) -> dict[str, Latency]:
        whole: dict[str, Histogram] = defaultdict(Histogram)
        for end in self.ends:
            for name, buckets in end.server_times.items():
                whole[name].merge(buckets)
        return {name: latency for name, histogram in sorted(whole.items()) if (latency := histogram.latency())}

    def slowest(self) -> tuple[SlowRequest, ...]:
        every = [slow for end in self.ends for slow in end.slowest]
        return tuple(sorted(every, key=lambda slow: slow.last_byte_ms or 0.0, reverse=True)[:MOST_SLOW])

    def error_samples(self) -> tuple[ErrorSample, ...]:
        return tuple(sample for end in self.ends for sample in end.error_samples)

    def health(self) -> tuple[WorkerHealth, ...]:
        return tuple(_health(worker, record) for worker, record in self.workers.items())

    def _close(self, until_s: int) -> Iterator[Second]:
        for at_s in sorted(second for second in self._seconds if second <= until_s):
            second = _second(self._stage, at_s, self._seconds.pop(at_s))
            self.series.append(second)
            yield second

    def _sum(self, phase: Phase, tallies: Sequence[PhaseTally]) -> Counts:
        """What was scheduled but neither sent nor kept back waited in a worker: it is lost with one, or ended."""
        scheduled, sent = sum(t.scheduled for t in tallies), sum(t.sent for t in tallies)
        errors, not_sent = _sums(t.errors for t in tallies), _sums(t.not_sent for t in tallies)
        waiting = scheduled - sent - sum(not_sent.values())
        if waiting > 0 and any(record.ended is None for record in self.workers.values()):
            not_sent[NotSent.WORKER_LOST] = not_sent.get(NotSent.WORKER_LOST, 0) + waiting
        succeeded = sum(t.succeeded for t in tallies)
        return Counts(
            scheduled=scheduled,
            sent=sent,
            not_sent=not_sent,
            succeeded=succeeded,
            errors=errors,
            under_way=sent - succeeded - sum(errors.values()),
        )


def _second(stage: Stage, at_s: int, ticks: Sequence[Tick]) -> Second:
    """One second over all workers that reported it."""
    whole: dict[Clock, Histogram] = defaultdict(Histogram)
    for tick in ticks:
        for histograms in (tick.counted, tick.others):
            for clock, buckets in histograms.items():
                whole[clock].merge(buckets)
    tallies = [tally for tick in ticks for tally in tick.phases.values()]

    def ms(clock: Clock, percent: float) -> float | None:
        us = whole[clock].percentile(percent)
        return None if us is None else us / 1e3

    return Second(
        at_s=at_s,
        phase=_phase(stage, at_s),
        scheduled=sum(t.scheduled for t in tallies),
        sent=sum(t.sent for t in tallies),
        succeeded=sum(t.succeeded for t in tallies),
        errors=_sums(t.errors for t in tallies),
        not_sent=sum(sum(t.not_sent.values()) for t in tallies),
        output_tokens=sum(tick.output_tokens for tick in ticks),
        in_flight=sum(tick.in_flight for tick in ticks),
        connections=sum(tick.connections for tick in ticks),
        ttft_p50_ms=ms(Clock.TTFT_SCHEDULED, 50),
        ttft_p99_ms=ms(Clock.TTFT_SCHEDULED, 99),
        inter_token_p50_ms=ms(Clock.INTER_TOKEN, 50),
        inter_token_p99_ms=ms(Clock.INTER_TOKEN, 99),
        e2e_p50_ms=ms(Clock.E2E_SCHEDULED, 50),
        e2e_p99_ms=ms(Clock.E2E_SCHEDULED, 99),
        lateness_p99_ms=ms(Clock.LATENESS, 99),
        generator_cpu=max(tick.cpu_share for tick in ticks),
    )


def _phase(stage: Stage, at_s: int) -> Phase:
    """Of the time, by the plan: a number of requests may have ended the counted part earlier."""
    if at_s < stage.warm_up_s:
        return Phase.WARM_UP
    return Phase.MEASURED if at_s < stage.warm_up_s + stage.seconds else Phase.COOL_DOWN


def _health(worker: int, record: WorkerRecord) -> WorkerHealth:
    return WorkerHealth(
        worker=worker,
        cpu_share=_mean(record.cpu),
        busiest_second=max(record.cpu, default=0.0),
        starved_share=_mean(record.starved) if record.starved else None,
        loop_lag_p99_ms=(record.lag.percentile(99) or 0.0) / 1e3,
        loop_lag_max_ms=(record.lag.percentile(100) or 0.0) / 1e3,
        lost=record.lost,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _sums(parts: Iterable[Mapping[_K, int]]) -> dict[_K, int]:
    whole: Counter[_K] = Counter()
    for one in parts:
        whole.update(one)
    return dict(whole)


def _source(parts: Sequence[Mapping[str, int]]) -> Literal["usage", "chunks", "mixed", "none"]:
    kinds = {kind for part in parts for kind, count in part.items() if count and kind != "none"}
    if len(kinds) > 1:
        return "mixed"
    return "usage" if kinds == {"usage"} else "chunks" if kinds else "none"


def _gaps(parts: Sequence[Mapping[str, int]]) -> Literal["tokens", "chunks", "mixed", "none"]:
    kinds = {kind for part in parts for kind, count in part.items() if count}
    if len(kinds) > 1:
        return "mixed"
    return "tokens" if kinds == {"tokens"} else "chunks" if kinds else "none"
