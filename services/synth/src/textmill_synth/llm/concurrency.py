"""How many calls may be under way at one endpoint: a limit that learns. Belongs to one event loop.

Additive increase, multiplicative decrease, with slow start, as in TCP (Jacobson, "Congestion avoidance and control",
1988), where a round trip is a *round*: as many calls as the limit allows at once.

- It grows only when it is really used: in slow start by one for each answer (it doubles in a round), later by one
  or an eighth a round, whichever is more.
- Faults of one burst are one cut: each takes two permits, together at most half of the limit. Faults of calls that
  were admitted before the cut belong to its burst. Until a round admitted after it has settled, the limit neither
  grows nor is cut again.
- Faults that have nothing to do with load don't cut. Where load is the cause, half the calls at once have twice the
  share of answers. A cut that didn't come halfway to this is taken back, and that share of faults is the
  ``background`` from then on: only more of them count. (The idea of a cut as an experiment is that of PCC, Dong et
  al., NSDI 2015.)
- Latency: answers a second are ``limit / latency`` (Little's law). Where twice the limit brings less than a tenth more
  of them, latency rises with load alone, and the limit is cut by a quarter.

Knows nothing of HTTP; what counts as a fault is the caller's word.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "fault", "neutral"]
"""``neutral`` says nothing about load: a call that was cancelled, or a request the endpoint refused as wrong."""
FIRST_LIMIT = 64
_FEWEST_IN_ROUND = 16
_TAKEN_BY_A_FAULT = 2.0
_WORTHWHILE_GAIN = 1.1


@dataclass(eq=False)
class _Round:
    """Calls admitted one after the other under about one limit. ``before`` are the rounds that led to a cut."""

    number: int
    limit: float
    before: "tuple[_Round, ...]" = ()
    undo: "tuple[float, float] | None" = None
    """Limit and threshold before the cut that opened this round."""
    admitted: int = 0
    settled: int = 0
    ok: int = 0
    faults: int = 0
    latency_s: float = 0.0
    over_at: float = 0.0
    used: bool = True
    judged: bool = False


@dataclass(eq=False)
class Permit:
    """One try's leave to be under way. Give it back with ``Concurrency.release``, whatever happened."""

    round: _Round | None = None
    started_at: float = 0.0


@dataclass
class Concurrency:
    """``limit`` permits, between 1 and ``ceiling``. ``threshold`` ends slow start; infinite while no cut was made."""

    ceiling: int
    limit: float = FIRST_LIMIT
    threshold: float = math.inf
    background: float = 0.0
    held: int = 0
    """Permits given out."""
    paced: int = 0
    """Of these, how many wait for the rate limit: they don't use what the limit allows. Counted by the caller."""
    cuts: int = 0
    _waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)
    _open_at: float = 0.0
    _rate: dict[int, float] = field(default_factory=dict)
    """Answers a second by the limit's power of two."""

    def __post_init__(self) -> None:
        self.limit = min(max(1.0, self.limit), self.ceiling)
        self._round = _Round(0, self.limit)
        self._previous = self._round
        self._cut_round = self._round
        self._taken = 0.0

    # -- permits ---------------------------------------------------------------------------------------------------

    async def acquire(self) -> Permit:
        """Wait for a permit. Call ``start`` when the try begins."""
        permit = self.try_acquire()
        if permit is not None:
            return permit
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():  # its turn had come
                self.held -= 1
                self._wake()
            raise
        return Permit()

    def try_acquire(self) -> Permit | None:
        """A permit if one is to spare now."""
        if self._waiting or self.held >= int(self.limit):
            return None
        self.held += 1
        return Permit()

    def start(self, permit: Permit) -> None:
        """The try begins now."""
        round_ = self._round
        if round_.admitted >= max(_FEWEST_IN_ROUND, round_.limit):
            round_ = self._open_round()
        round_.admitted += 1
        permit.round, permit.started_at = round_, asyncio.get_running_loop().time()

    def release(self, permit: Permit, outcome: Outcome) -> None:
        """The try has ended, or never began."""
        if permit.round is not None:
            self._settle(permit.round, outcome, asyncio.get_running_loop().time() - permit.started_at)
        self.held -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.held < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.held += 1
                turn.set_result(None)

    # -- the hold --------------------------------------------------------------------------------------------------

    def hold(self, seconds: float) -> None:
        """Let no try begin for so long from now. Never shortens a hold that is already on."""
        self._open_at = max(self._open_at, asyncio.get_running_loop().time() + seconds)

    def held_for_s(self) -> float:
        """How long a hold is still on: zero or less when it isn't."""
        return self._open_at - asyncio.get_running_loop().time()

    # -- learning --------------------------------------------------------------------------------------------------

    def learnt(self) -> dict[str, float | None]:
        """What a later ``Concurrency`` for the same endpoint may start with, as JSON."""
        cut = math.isfinite(self.threshold)
        limit = max(self.limit, self.threshold) if cut else self.limit
        return {"limit": limit, "threshold": limit if cut else None}

    def slow_start(self) -> None:
        """Begin anew from a small limit, after an outage; up to where the limit was it doubles."""
        self.threshold = min(self.threshold, self.limit)
        self.limit = min(self.limit, FIRST_LIMIT)
        self._open_round()

    def _settle(self, round_: _Round, outcome: Outcome, latency_s: float) -> None:
        if outcome == "neutral":
            round_.admitted -= 1
        else:
            round_.settled += 1
        if outcome == "ok":
            round_.ok += 1
            round_.latency_s += latency_s
            self._grow(round_)
        elif outcome == "fault":
            round_.faults += 1
            self._feel(round_)
        self._judge_if_over(round_)
        if self._cut_round.undo is not None:
            self._judge_if_over(self._cut_round)

    def _grow(self, round_: _Round) -> None:
        if self.held - self.paced < int(self.limit):
            round_.used = False
        if not round_.used or self._cut_round.undo is not None:
            return
        step = 1.0 if self.limit < self.threshold else max(1.0, self.limit / 8) / self.limit
        # Where half of the calls fail anyway, each answer stands for two.
        self.limit = min(self.ceiling, self.limit + step / max(0.1, 1 - self.background))

    def _feel(self, round_: _Round) -> None:
        """A fault: cut, or deepen the cut of its burst, or nothing if so many were to be expected."""
        expected = self.background * round_.admitted
        if round_.faults <= expected + 3 * math.sqrt(expected):
            return
        if round_.number >= self._cut_round.number:
            if self._cut_round.undo is not None:
                return
            self._begin_cut(round_)
        if self._cut_round.undo is None:
            return
        before = self._cut_round.undo[0]
        take = min(_TAKEN_BY_A_FAULT, before / 2 - self._taken)
        if take > 0:
            self._taken += take
            self._shrink(self.limit - take)

    def _begin_cut(self, round_: _Round) -> None:
        before = tuple(dict.fromkeys((self._previous, round_, self._round)))
        undo = (self.limit, self.threshold)
        self._cut_round = self._open_round()
        self._cut_round.before, self._cut_round.undo = before, undo
        self._taken = 0.0
        self.cuts += 1

    def _shrink(self, limit: float) -> None:
        self.limit = self.threshold = max(1.0, limit)
        self._cut_round.limit = min(self._cut_round.limit, self.limit)

    def _judge_if_over(self, round_: _Round) -> None:
        """Once a round, when all its calls are admitted, and most have settled or take far longer than an answer."""
        if round_ is self._round or round_.judged:
            return
        waited_s = asyncio.get_running_loop().time() - round_.over_at
        if round_.settled * 4 < round_.admitted * 3 and waited_s * round_.ok <= 2 * round_.latency_s:
            return
        round_.judged = True
        share = round_.ok / max(1, round_.admitted)
        if round_.undo is not None:
            self._judge_cut(round_, share)
            round_.undo, round_.before = None, ()
        elif 1 - share < self.background:
            self.background += (1 - share - self.background) / 2
        if round_.used and round_.ok >= _FEWEST_IN_ROUND / 2:
            self._judge_latency(round_)

    def _judge_cut(self, round_: _Round, share: float) -> None:
        assert round_.undo is not None
        limit, _ = round_.undo
        admitted = sum(r.admitted for r in round_.before)
        before = sum(r.ok for r in round_.before) / max(1, admitted)
        promised = min(1.0, before * limit / round_.limit)
        # A small cut, or faults too rare for a share, prove nothing: then the cut stands.
        if round_.limit <= 0.8 * limit and share < (before + promised) / 2:
            self.background = 1 - share
            self.limit, self.threshold = max(self.limit, limit), math.inf

    def _judge_latency(self, round_: _Round) -> None:
        size = int(math.log2(round_.limit))
        rate = round_.limit * round_.ok / round_.latency_s if round_.latency_s > 0 else math.inf
        self._rate[size] = rate
        smaller = self._rate.get(size - 1)
        if smaller is None or rate >= smaller * _WORTHWHILE_GAIN or round_.number < self._cut_round.number:
            return
        if self._cut_round.undo is None:
            self.limit = self.threshold = max(1.0, min(self.limit, round_.limit) * 0.75)
            self._cut_round = self._open_round()
            self.cuts += 1

    def _open_round(self) -> _Round:
        self._previous = self._round
        self._previous.over_at = asyncio.get_running_loop().time()
        self._round = _Round(self._round.number + 1, self.limit)
        self._judge_if_over(self._previous)
        return self._round
