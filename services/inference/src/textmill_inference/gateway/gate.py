"""One model's entrance: who is under way at its engines, who waits, who is turned away. Runs on one event loop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from textmill_inference.gateway import metrics
from textmill_inference.gateway.drain import Drain
from textmill_inference.gateway.fair_queue import FairQueue
from textmill_inference.gateway.keys import Caller
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.gateway.quotas import Account, Reservation


@dataclass(frozen=True)
class Room:
    """For each model: most requests under way, most that wait, and how long each may wait."""

    in_flight: int = 1024
    queue: int = 1024
    wait_s: float = 30.0


@dataclass(slots=True)
class Claim:
    """A request as admission sees it: whose it is, and what was reserved for it."""

    caller: Caller
    account: Account
    reservation: Reservation

    @property
    def tokens(self) -> int:
        return self.reservation.tokens


@dataclass(eq=False, slots=True)
class Permit:
    """A place at the engine. Release it once, whatever happened; further calls do nothing."""

    _gate: "Gate"
    _claim: Claim
    _charged: float
    _open: bool = True

    def release(self, tokens_used: int | None = None) -> None:
        """The exchange is over. ``tokens_used`` is prompt and answer; None, where the answer didn't tell, counts all
        that was reserved, so that leaving the usage out of a stream is no way around a quota.
        """
        if self._open:
            self._open = False
            tokens = self._claim.tokens if tokens_used is None else tokens_used
            self._claim.account.settle(self._claim.reservation, tokens)
            self._gate.queue.settle(self._claim.caller.key_id, self._charged, tokens)
            self._gate.drain.ended(self._gate.clock())
            self._gate.freed()

    def give_back(self) -> None:
        """The request never reached the engine: it counts for nothing."""
        if self._open:
            self._open = False
            self._claim.account.give_back(self._claim.reservation)
            self._gate.queue.refund(self._claim.caller.key_id, self._charged)
            self._gate.freed()


@dataclass(eq=False, slots=True)
class Waiter:
    """``turn`` becomes a permit or an ``OpenAIError``. Times are the gate's clock."""

    claim: Claim
    turn: "asyncio.Future[Permit]"
    since: float
    deadline: float
    timer: asyncio.TimerHandle | None = None

    def stop_clock(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


@dataclass
class Gate:
    model: str
    room: Room
    clock: Callable[[], float]
    in_flight: int = 0
    limit: int = field(init=False)
    queue: FairQueue[Waiter] = field(default_factory=FairQueue)
    drain: Drain = field(default_factory=Drain)

    def __post_init__(self) -> None:
        self.limit = self.room.in_flight
        self._length = metrics.QUEUE_LENGTH.labels(self.model)

    @property
    def is_full(self) -> bool:
        """While a place is free nobody waits: each place that comes free is given away at once."""
        return self.in_flight >= self.limit

    def admit(self, claim: Claim) -> Permit:
        """Let in what needn't wait."""
        caller = claim.caller
        return self._let_in(claim, self.queue.pass_by(caller.key_id, caller.weight, claim.tokens), 0.0)

    def join(self, claim: Claim) -> Waiter:
        """Raises ``OpenAIError`` (429) if there is no place."""
        caller = claim.caller
        if len(self.queue) >= self.room.queue:
            displaced = self.queue.make_room(caller.key_id, caller.weight, claim.tokens)
            if displaced is None:
                claim.account.give_back(claim.reservation)
                raise self._refusal(caller, "queue_full", "too many requests wait already")
            self._turn_away(displaced, "displaced", "the queue is full and this key's requests fill most of it")
        loop, now = asyncio.get_running_loop(), self.clock()
        turn: asyncio.Future[Permit] = loop.create_future()
        waiter = Waiter(claim, turn, now, now + self.room.wait_s)
        waiter.timer = loop.call_later(self.room.wait_s, self._expire, waiter)
        self.queue.join(caller.key_id, caller.weight, claim.tokens, waiter)
        self._length.set(len(self.queue))
        return waiter

    def abandon(self, waiter: Waiter) -> None:
        """Whoever awaited this turn is gone."""
        if self.queue.leave(waiter.claim.caller.key_id, waiter):
            self._drop(waiter)
        elif waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            waiter.turn.result().give_back()

    def freed(self) -> None:
        """A place at the engine is free again."""
        self.in_flight -= 1
        self._dispatch()

    def observe(self, running: int, waiting: int) -> None:
        """What the engines say of themselves. A few that wait there keep them fed; more are better held here, fairly.

        With several gateways in front, each gives way in proportion to what it has under way.
        """
        fed = max(1, running // 8)
        if waiting > fed:
            share = (running + fed) / (running + waiting)
            self.limit = max(1, min(self.limit, int(self.in_flight * share)))
        elif waiting == 0 and self.in_flight >= self.limit:
            self.limit = min(self.room.in_flight, self.limit + max(4, self.limit // 4))
            self._dispatch()

    def _dispatch(self) -> None:
        if not len(self.queue):
            return
        while len(self.queue) and self.in_flight < self.limit:
            waiter, charged = self.queue.pop()
            now = self.clock()
            if waiter.turn.done() or now >= waiter.deadline:
                self.queue.refund(waiter.claim.caller.key_id, charged)
                self._refuse_late(waiter)
            else:
                waiter.stop_clock()
                waiter.turn.set_result(self._let_in(waiter.claim, charged, now - waiter.since))
        self._length.set(len(self.queue))

    def _let_in(self, claim: Claim, charged: float, waited_s: float) -> Permit:
        self.in_flight += 1
        metrics.QUEUE_SECONDS.labels(self.model, claim.caller.group).observe(waited_s)
        return Permit(self, claim, charged)

    # -- turning away ----------------------------------------------------------------------------------------------

    def _expire(self, waiter: Waiter) -> None:
        if self.queue.leave(waiter.claim.caller.key_id, waiter):
            self._refuse_late(waiter)

    def _refuse_late(self, waiter: Waiter) -> None:
        self._turn_away(waiter, "queue_timeout", f"no place came free in {self.room.wait_s:g} s")

    def _turn_away(self, waiter: Waiter, reason: str, why: str) -> None:
        """For a waiter that is in the queue no more."""
        self._drop(waiter)
        if not waiter.turn.done():
            waiter.turn.set_exception(self._refusal(waiter.claim.caller, reason, why))

    def _drop(self, waiter: Waiter) -> None:
        waiter.stop_clock()
        waiter.claim.account.give_back(waiter.claim.reservation)
        self._length.set(len(self.queue))

    def _refusal(self, caller: Caller, reason: str, why: str) -> OpenAIError:
        metrics.REJECTED.labels(self.model, caller.group, reason).inc()
        after_s = self.drain.retry_after_s(len(self.queue), self.clock())
        return OpenAIError(
            429,
            f"{self.model!r} is busy: {why}; come again in {after_s} s",
            kind="rate_limit_error",
            code=reason,
            model=self.model,
            retry_after_s=after_s,
        )
