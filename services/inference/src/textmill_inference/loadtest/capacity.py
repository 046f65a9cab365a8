"""The capacity search: which load comes next, and what the stages so far have proved. Knows no clock and no server.

*What is sought.* The capacity is the load up to which a stage meets the SLO more often than not. Above it a stage meets
the SLO with a chance of at most one half, below it misses with at most one half; nothing else is assumed of the server
but that stages are independent.

*How it is sought.* Doubling (or halving) finds a load that meets the SLO and one that misses it; bisection narrows the
gap. These stages steer and prove nothing, since each may have had luck. Then *runs* of stages confirm both ends in
turn: the low end is proved when n stages in a row meet the SLO there, the high end when n in a row miss it. A stage
that goes the other way moves that end further out and starts a longer run.

*Why that is a proof.* If a load above the capacity is held to be below it, n stages in a row met an SLO that each met
with a chance of at most 1/2: 2^-n. The runs of one end need n, n+2, n+3, n+4 ... stages, so all of them together err
with at most 2^-n (1 + 1/4 + 1/8 + ...) = 1.5 x 2^-n. This holds for any way of choosing the loads from earlier
results, because every run is counted afresh (a union bound over pre-set error shares, as in alpha spending: Lan and
DeMets, Biometrika 70(3), 1983). Stages that the generator spoiled count neither way.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from textmill.contracts.capacity import CapacityFinding, CapacityOptions, HoldVerdict, StopReason, Trial

Side = Literal["holds", "fails"]
_MOST_SPOILED = 3
"""So many spoiled or too thin stages in a row at one load, and the search takes it for out of reach."""


@dataclass
class _End:
    """One end of the interval under confirmation: where it is, how far the run has come."""

    side: Side
    load: float | None = None
    moves: int = 0
    run: int = 0
    proved: float | None = None
    closed: bool = False
    """Nothing more can be learnt here."""

    def needed(self, first: int) -> int:
        return first if self.moves == 0 else first + 1 + self.moves


@dataclass
class CapacitySearch:
    """Ask ``next()`` for a load, run a stage at it, ``tell`` how it went; until ``next()`` gives None."""

    options: CapacityOptions
    trials: list[Trial] = field(default_factory=list)
    stopped: StopReason | None = None
    _low: float | None = None
    _high: float | None = None
    _ceiling: float | None = None
    _asked: tuple[float, Side | None] | None = None
    _spoiled: dict[float, int] = field(default_factory=dict)
    _spent_s: float = 0.0

    def __post_init__(self) -> None:
        self._holds, self._fails = _End("holds"), _End("fails")
        self._first = math.ceil(math.log2(1.5 / ((1 - self.options.confidence) / 2)) - 1e-9)

    @property
    def stages_in_a_row(self) -> int:
        """How many stages the first run at each end takes."""
        return self._first

    @property
    def confirming(self) -> bool:
        """Whether the stage that ``next`` asked for is one of a run, not an exploring one."""
        return self._asked is not None and self._asked[1] is not None

    def next(self) -> float | None:
        """The load of the next stage, None when the search has ended: ``stopped`` then says why."""
        if self.stopped is None:
            self.stopped = self._out_of_budget()
        if self.stopped is None:
            self._asked = self._exploring() or self._confirming()
            if self._asked is None:
                self.stopped = self._why_done()
        return self._asked[0] if self.stopped is None and self._asked is not None else None

    def tell(self, met: bool | None, *, evidence: bool = True, seconds: float = 0.0) -> Trial:
        """How the stage went that ``next`` asked for: ``met`` is None if the generator spoiled it."""
        if self._asked is None:
            raise ValueError("tell() answers next(), which has asked for nothing yet")
        load, side = self._asked
        self._asked = None
        trial = Trial(load=load, met=met, evidence=evidence, side=side)
        self.trials.append(trial)
        self._spent_s += seconds
        if met is None or (side is not None and not evidence):
            self._no_news(load, side, spoiled=met is None)
        else:
            self._spoiled.pop(load, None)
            self._take(load, side, met)
        return trial

    def give_up(self, reason: StopReason) -> None:
        """The caller knows that no stage will tell more, for instance because nothing answers at the target."""
        self.stopped = self.stopped or reason

    def finding(self) -> CapacityFinding:
        low, high = self._holds.proved, self._fails.proved
        seen = [t for t in self.trials if t.met is not None]
        reason = self.stopped or "stages"
        return CapacityFinding(
            kind=self.options.kind,
            low=low,
            high=high,
            highest_met=max((t.load for t in seen if t.met), default=None),
            lowest_missed=min((t.load for t in seen if not t.met), default=None),
            confidence=self.options.confidence,
            wanted=self.options.wanted,
            verdict=self._verdict(low, high),
            stopped=reason,
            why=self._explain(reason),
            trials=tuple(self.trials),
        )

    # -- exploring -------------------------------------------------------------------------------------------------

    def _exploring(self) -> tuple[float, Side | None] | None:
        load = self._explore()
        return None if load is None else (load, None)

    def _explore(self) -> float | None:
        """The next load that narrows the gap, None when it is narrow enough or can't be narrowed."""
        options = self.options
        if self._low is None and self._high is None and self._ceiling is None:
            return self._on_grid(options.start or options.wanted or options.min_load)
        if options.quick:
            return None
        top = self._top()
        if self._low is None:
            assert top is not None
            return self._new(max(options.min_load, top / 2), top)
        if top is None:
            return self._new(min(options.max_load, self._low * 2), None)
        if top / self._low <= 1 + options.resolution:
            return None
        return self._new(math.sqrt(self._low * top), top)

    def _top(self) -> float | None:
        """The lowest load that is known to be too high, for the server or for the generator."""
        return min((load for load in (self._high, self._ceiling) if load is not None), default=None)

    def _new(self, load: float, top: float | None) -> float | None:
        """On the grid of loads, and strictly inside the gap; else None."""
        load = self._on_grid(load)
        if (self._low is not None and load <= self._low) or (top is not None and load >= top):
            return None
        return load

    def _on_grid(self, load: float) -> float:
        """Requests in flight are whole; rates have three digits."""
        if self.options.kind == "concurrency":
            return float(max(1, round(load)))
        return float(f"{load:.3g}")

    # -- confirming ------------------------------------------------------------------------------------------------

    def _confirming(self) -> tuple[float, Side] | None:
        """The end with the shorter run is next, so that both see the same stretch of time."""
        self._place(self._holds, self._low)
        self._place(self._fails, self._high)
        open_ends = [end for end in (self._holds, self._fails) if not end.closed and end.load is not None]
        if not open_ends:
            return None
        end = min(open_ends, key=lambda e: (e.needed(self._first) > e.run, e.run) if e.proved is None else (True, 99))
        assert end.load is not None
        return end.load, end.side

    def _place(self, end: _End, start: float | None) -> None:
        if end.load is None and start is not None and not end.closed:
            end.load = start

    def _take(self, load: float, side: Side | None, met: bool) -> None:
        if side is None:
            if met:
                self._low = load if self._low is None else max(self._low, load)
            else:
                self._high = load if self._high is None else min(self._high, load)
            return
        end = self._holds if side == "holds" else self._fails
        if met != (side == "holds"):
            self._move(end)
            return
        end.run += 1
        if end.run >= end.needed(self._first):
            end.proved, end.closed = end.load, True

    def _move(self, end: _End) -> None:
        """A stage went the other way: try further out, at twice the distance, with a longer run."""
        assert end.load is not None
        factor = 1 + self.options.resolution * 2**end.moves
        end.moves, end.run = end.moves + 1, 0
        further = self._outward(end, factor)
        wanted = self.options.wanted
        if wanted is not None and min(end.load, further) < wanted < max(end.load, further):
            further = self._on_grid(wanted)
        if not self.options.min_load <= further <= self._limit() or (self.options.quick and further != wanted):
            end.closed = True
        else:
            end.load = further

    def _outward(self, end: _End, factor: float) -> float:
        """At least one step of the grid away."""
        assert end.load is not None
        if end.side == "holds":
            load = self._on_grid(end.load / factor)
            return load if load < end.load else end.load - 1
        load = self._on_grid(end.load * factor)
        return load if load > end.load else end.load + 1

    def _limit(self) -> float:
        below_ceiling = self.options.max_load if self._ceiling is None else math.nextafter(self._ceiling, 0)
        return min(self.options.max_load, below_ceiling)

    # -- the ways to end -------------------------------------------------------------------------------------------

    def _no_news(self, load: float, side: Side | None, *, spoiled: bool) -> None:
        """Try again; in the end take the load for out of the generator's reach, or for too slow to measure."""
        self._spoiled[load] = self._spoiled.get(load, 0) + 1
        # Below a load that is out of reach one spoiled stage is enough: the next lower load is likelier to be in reach.
        if self._spoiled[load] < (1 if side is None and self._ceiling is not None else _MOST_SPOILED):
            return
        if side is not None:
            (self._holds if side == "holds" else self._fails).closed = True
        elif self._ceiling is None or load < self._ceiling:
            self._ceiling = load
        if not spoiled:
            self.give_up("too few requests")

    def _out_of_budget(self) -> StopReason | None:
        if len(self.trials) >= self.options.max_stages:
            return "stages"
        return "time" if self._spent_s >= self.options.max_seconds else None

    def _why_done(self) -> StopReason:
        if self._holds.proved is not None and self._fails.proved is not None:
            return "decided"
        if self.options.quick and self._verdict(self._holds.proved, self._fails.proved) in ("yes", "no"):
            return "decided"
        if self._ceiling is not None and self._high is None:
            return "generator"
        if self._low is None and self._fails.proved is not None:
            return "lowest load"
        if self._high is None and self._holds.proved is not None:
            return "highest load"
        return "generator" if any(t.met is None for t in self.trials[-_MOST_SPOILED:]) else "decided"

    def _verdict(self, low: float | None, high: float | None) -> HoldVerdict | None:
        wanted = self.options.wanted
        if wanted is None:
            return None
        if low is not None and low >= wanted:
            return "yes"
        return "no" if high is not None and high <= wanted else "undecided"

    def _explain(self, reason: StopReason) -> str:
        """One sentence for a person."""
        options, ceiling = self.options, self._ceiling
        return {
            "decided": "what was asked is settled by stages in a row",
            "stages": f"the search used up its {options.max_stages} stages; raise max_stages for a narrower answer",
            "time": f"the search used up its {options.max_seconds:g} s; raise max_seconds for a narrower answer",
            "generator": (
                f"the load generator reached its own limit at {ceiling or self._last_load():g}; "
                "more processes or machines for it would tell more"
            ),
            "too few requests": (
                f"at load {self._last_load():g} a stage answered too few requests for the SLO's percentiles; "
                "allow longer stages or judge by a lower percentile"
            ),
            "highest load": f"the highest load allowed, {options.max_load:g}, still met the SLO; raise max_load",
            "lowest load": f"the lowest load allowed, {options.min_load:g}, missed the SLO already",
            "no answers": "the target answered nothing",
        }[reason]

    def _last_load(self) -> float:
        return self.trials[-1].load if self.trials else 0.0
