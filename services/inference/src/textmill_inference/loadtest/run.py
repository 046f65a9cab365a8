"""One load test from its first stage to its last: which loads, in which order, on which side. Knows no store.

The stages come one after the other, each by the generator; the server's metrics are read beside them. What it finds is
plain data; verdict.py and report.py put it into words and pictures. (One stage inside the generator: stage_run.py.)
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from textmill.contracts.capacity import CapacityFinding, CapacityOptions
from textmill.contracts.load import ClosedLoop, Expectation, Load, Poisson, Stage, Target, Traffic
from textmill.contracts.loadoptions import LoadtestEvent, LoadtestOptions, StageStarted
from textmill.contracts.loadreport import Comparison, Level, Purpose, Side
from textmill.contracts.loadtest import ErrorClass, Measured, Second
from textmill_inference.loadtest.breakdown import break_down
from textmill_inference.loadtest.capacity import CapacitySearch
from textmill_inference.loadtest.compare import Pair, compare_pairs
from textmill_inference.loadtest.histogram import samples_needed
from textmill_inference.loadtest.keyrefs import refuse_key_inside, without_key
from textmill_inference.loadtest.levels import level_of, load_of
from textmill_inference.loadtest.series import Readings
from textmill_inference.loadtest.slo import judge

_LONGEST = 6
"""A search's stage is made so many times longer at most to get the requests that a percentile takes."""
_NEVER_ANSWERS = {ErrorClass.REFUSED, ErrorClass.CLIENT_ERROR, ErrorClass.WRONG_CONTENT}
Tell = Callable[[LoadtestEvent], None]
Keep = Callable[[int, Measured], None]
"""Told the number of a stage and what it measured, as soon as it is over."""


def keep_nothing(number: int, measured: Measured) -> None:
    pass


class RunsStages(Protocol):
    """The load generator, as far as a run needs it: see generator.py."""

    def run(self, stage: Stage, on_news: Callable[[Second], None], stopping: Callable[[], bool]) -> Measured: ...


@dataclass(frozen=True)
class SidePlan:
    """One target: its generator (with the key in it, and ``key`` to keep it out of results) and its metrics."""

    target: Target
    generator: RunsStages
    key: str = ""
    metrics: Mapping[str, Readings] = field(default_factory=dict)
    """By what they are of: "engine", "gateway"."""


@dataclass
class Findings:
    """All that a run has found so far. ``stages`` has the same order as ``levels``."""

    levels: list[Level] = field(default_factory=list)
    stages: list[Measured] = field(default_factory=list)
    capacity: CapacityFinding | None = None
    comparisons: list[Comparison] = field(default_factory=list)
    seconds: float = 0.0


class LoadRun:
    """``tell`` hears all that happens; ``stopping`` is asked ten times a second and may raise to end the run."""

    def __init__(
        self,
        options: LoadtestOptions,
        traffic: Traffic,
        sides: Mapping[Side, SidePlan],
        tell: Tell,
        stopping: Callable[[], bool],
        rounds: int = 0,
        clock: Callable[[], float] = time.monotonic,
        keep: Keep = keep_nothing,
    ) -> None:
        self._options = options
        self._slo = options.judged_by()
        self._traffic = traffic
        self._sides = sides
        self._tell = tell
        self._stopping = stopping
        self._rounds = rounds
        self._clock = clock
        self._keep = keep
        self._began = clock()
        self.found = Findings()

    def play(self) -> Findings:
        """Sweep or comparison first, then the capacity search if one is asked for."""
        if "b" in self._sides:
            self._compare()
        else:
            for load in self._options.sweep():
                self._stage("a", load, "sweep", self._options.seconds_per_level)
        if self._options.capacity is not None:
            self._search(self._options.capacity)
        self.found.seconds = self._clock() - self._began
        return self.found

    def planned(self) -> int | None:
        """How many stages there will be; None while a search decides that."""
        if self._options.capacity is not None:
            return None
        return len(self._options.sweep()) * (4 * self._rounds if "b" in self._sides else 1)

    # -- comparison ------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        for load in self._options.sweep():
            pairs: list[Pair] = []
            for first, second in _orders(self._rounds):
                one = self._stage(first, load, "compare", self._options.seconds_per_level)[1]
                other = self._stage(second, load, "compare", self._options.seconds_per_level)[1]
                pairs.append((one, other) if first == "a" else (other, one))
            found = compare_pairs(pairs)
            if found is not None:
                self.found.comparisons.append(found)

    # -- search ----------------------------------------------------------------------------------------------------

    def _search(self, options: CapacityOptions) -> None:
        search = CapacitySearch(options)
        while (load := search.next()) is not None:
            began = self._clock()
            purpose: Purpose = "confirm" if search.confirming else "explore"
            arrivals = _arrivals(options, load, seed=len(search.trials))
            level, measured = self._stage("a", arrivals, purpose, self._long_enough())
            judged = level.judgement
            assert judged is not None
            search.tell(judged.met, evidence=judged.evidence, seconds=self._clock() - began)
            if _answers_nothing(measured, load <= options.min_load):
                search.give_up("no answers")
        self.found.capacity = search.finding()

    def _long_enough(self) -> float:
        """For the requests that the SLO's percentiles take, judging by the last stage's throughput."""
        seconds, slo = self._options.seconds_per_level, self._slo
        done = [level for level in self.found.levels if level.requests_per_s > 0]
        if slo is None or not done:
            return seconds
        of_requests = [limit.percent for limit in slo.limits if limit.measure != "inter_token"]
        needed = max(map(samples_needed, of_requests), default=0)
        return min(_LONGEST * seconds, max(seconds, 1.2 * needed / done[-1].requests_per_s))

    # -- one stage -------------------------------------------------------------------------------------------------

    def _stage(self, side: Side, load: Load, purpose: Purpose, seconds: float) -> tuple[Level, Measured]:
        plan, number = self._sides[side], len(self.found.levels) + 1
        stage = self._stage_of(plan, load, seconds, number)
        refuse_key_inside(stage, plan.key)
        began_s = self._elapsed()
        started = StageStarted(
            number=number, side=side, purpose=purpose, load=load_of(load)[1], arrivals=load, seconds=seconds
        )
        self._tell(LoadtestEvent(at_s=began_s, stage=started))
        measured = plan.generator.run(
            stage, lambda second: self._tell(LoadtestEvent(at_s=self._elapsed(), second=second)), self._stopping
        )
        self._stopping()
        measured = without_key(measured, plan.key)
        level = level_of(
            measured,
            number=number,
            side=side,
            purpose=purpose,
            began_s=began_s,
            judgement=judge(self._slo, measured) if self._slo is not None else None,
            breakdown=break_down(measured, _growth(plan, measured)),
        )
        self.found.levels.append(level)
        self.found.stages.append(measured)
        self._keep(number, measured)
        self._tell(LoadtestEvent(at_s=self._elapsed(), level=level))
        return level, measured

    def _elapsed(self) -> float:
        return self._clock() - self._began

    def _stage_of(self, plan: SidePlan, load: Load, seconds: float, number: int) -> Stage:
        options = self._options
        return Stage(
            name=f"stage {number}",
            target=plan.target,
            load=load,
            traffic=self._traffic,
            warm_up_s=self._warm_up(load) if options.warm_up_s is None else options.warm_up_s,
            seconds=seconds,
            cool_down_s=options.cool_down_s,
            requests=options.requests_per_level,
            timeout_s=options.timeout_s,
            expects=self._expected(),
        )

    def _warm_up(self, load: Load) -> float:
        """Until the first requests have ended: as long as they took in the last stage, and all clients have begun."""
        last = next((v.e2e_ms.mean for v in reversed(self.found.levels) if v.e2e_ms is not None), 0.0) / 1e3
        ramp = load.concurrency / 1e3 if isinstance(load, ClosedLoop) and load.ramp_s is None else 0.0
        return round(min(30.0, max(1.0, last)) + ramp, 3)

    def _expected(self) -> Expectation:
        """What calibration plays: the last stage's figures."""
        for level in reversed(self.found.levels):
            if level.ttft_sent_ms is not None:
                gap = level.itl_ms.mean if level.itl_ms is not None else 50.0
                return Expectation(ttft_ms=min(level.ttft_sent_ms.mean, 600_000.0), itl_ms=min(gap, 60_000.0))
        return Expectation()


def _orders(rounds: int) -> Iterator[tuple[Side, Side]]:
    """A B, B A, A B, B A ...: so that a steady drift falls on both alike."""
    for _ in range(rounds):
        yield "a", "b"
        yield "b", "a"


def _arrivals(options: CapacityOptions, load: float, seed: int) -> Load:
    """Each stage of a rate has arrivals of its own, or all would share one draw's luck."""
    if options.kind == "concurrency":
        return ClosedLoop(concurrency=round(load))
    return Poisson(rate_per_s=load, seed=seed)


def _growth(plan: SidePlan, measured: Measured) -> dict[str, dict[str, float]]:
    """How the server's metrics grew over the counted part."""
    began = measured.started_at + measured.stage.warm_up_s
    found = {name: readings.between(began, began + measured.seconds) for name, readings in plan.metrics.items()}
    return {name: growth for name, growth in found.items() if growth is not None}


def _answers_nothing(measured: Measured, lowest: bool) -> bool:
    counts = measured.counted
    if counts.succeeded or not counts.errors:
        return False
    return lowest or set(counts.errors) <= _NEVER_ANSWERS
