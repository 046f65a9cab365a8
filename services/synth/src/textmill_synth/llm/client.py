"""The one owner of retries: brings a call to an answer over several tries, and over a second endpoint if there is one.

Each try waits for a permit and for the rate limit, and only then has its deadline start; waiting between tries holds
no permit. Knows nothing of passages, checks or the ledger.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from textmill.contracts.datasets import Message
from textmill.errors import DependencyDown
from textmill_synth.llm.breaker import Breaker
from textmill_synth.llm.concurrency import FIRST_LIMIT, Concurrency, Outcome
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.llm.hedging import Stragglers
from textmill_synth.llm.limits import RateLimits
from textmill_synth.llm.request import CallFailed, ChatRequest, Completion, Fault
from textmill_synth.llm.retry import PATIENT_DOUBLINGS, Patience, RetryPolicy

LONGEST_HOLD_S = 300.0
"""A ``Retry-After`` beyond this sends the job back to the queue: it isn't worth holding a worker for."""
_PROBE = ChatRequest("", (Message(role="user", content="Hi"),), 0.0, 1)
_PROBE_DEADLINE_S = 30.0
_FAULTS_OF_LOAD = {"llm_timeout", "llm_rate_limited", "llm_server_error", "llm_connection"}


@dataclass(eq=False)
class Route:
    """One way to an answer: an endpoint and what it can bear."""

    endpoint: Endpoint
    concurrency: Concurrency
    limits: RateLimits | None = None


@dataclass
class Stats:
    """``hedged`` tries were asked twice, ``hedges_won`` of them answered by the second try; both were paid for."""

    tries: int = 0
    hedged: int = 0
    hedges_won: int = 0
    answered_by_fallback: int = 0
    probes: int = 0


@dataclass(eq=False)
class _Lane:
    route: Route
    breaker: Breaker
    stragglers: Stragglers
    _begun: float = 0.0
    _turned_away: float = 0.0

    def begin(self) -> None:
        """What is remembered is about twice as many tries as can be under way: all may be told of at one time."""
        kept = 1 - 1 / (2 * max(FIRST_LIMIT, self.route.concurrency.limit))
        self._begun = self._begun * kept + 1
        self._turned_away *= kept

    def turn_away(self) -> None:
        self._turned_away += 1

    @property
    def turns_most_away(self) -> bool:
        """Whether most of the last tries got a 429. Of those begun, not of those ended: a 429 comes at once, and an
        answer later, so that after a pause the first to end are all 429s."""
        return 2 * self._turned_away > self._begun


class ChatClient:
    """Asks the first of ``routes`` whose endpoint isn't down. Close it when done.

    ``deadline_s`` bounds each try, from its admission to its last byte. ``observe`` is told the outcome of each try:
    "ok" or the fault's kind. ``model`` is whom a probe asks.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        model: str,
        deadline_s: float,
        retry: RetryPolicy,
        observe: Callable[[str], None] = lambda outcome: None,
        hedge_budget: float = 0.0,
    ) -> None:
        self._probe_request = replace(_PROBE, model=model)
        self._deadline_s = deadline_s
        self._retry = retry
        self._observe = observe
        self._hedges = hedge_budget > 0
        self._changed = asyncio.Event()
        self._lanes = [self._lane(route, hedge_budget) for route in routes]
        self._tries = self._answers = self._answered_by_fallback = self._probes = 0

    @property
    def stats(self) -> Stats:
        hedged = sum(lane.stragglers.hedged for lane in self._lanes)
        won = sum(lane.stragglers.won for lane in self._lanes)
        return Stats(self._tries, hedged, won, self._answered_by_fallback, self._probes)

    async def close(self) -> None:
        for lane in self._lanes:
            await lane.breaker.close()
            if lane.route.limits is not None:
                await lane.route.limits.close()

    async def complete(self, request: ChatRequest) -> Completion:
        patience = Patience[_Lane](self._retry)
        while True:
            lane = await self._open_lane()
            outcome = await self._try(lane, request)
            if isinstance(outcome, Completion):
                self._answers += 1
                self._answered_by_fallback += lane is not self._lanes[0]
                return outcome
            if outcome is not None:
                await self._after(outcome, lane, patience)

    def _lane(self, route: Route, hedge_budget: float) -> _Lane:
        breaker = Breaker(
            lambda: self._probe(route),
            lambda probes: self._retry.delay_s(probes, PATIENT_DOUBLINGS),
            self._retry.max_tries,
            self._changed,
            route.concurrency.slow_start,
        )
        return _Lane(route, breaker, Stragglers(hedge_budget))

    async def _open_lane(self) -> _Lane:
        """The first lane whose endpoint isn't down. Raises ``DependencyDown`` when all are given up."""
        while True:
            for lane in self._lanes:
                lane.breaker.raise_if_broken()
                if not lane.breaker.is_open:
                    return lane
            if all(lane.breaker.down for lane in self._lanes):
                raise DependencyDown(f"the LLM endpoint answers no call: {self._lanes[0].breaker.down}")
            self._changed.clear()
            await self._changed.wait()

    async def _after(self, fault: Fault, lane: _Lane, patience: Patience[_Lane]) -> None:
        """Wait as long as is due before the next try. Raises when there is no use in one."""
        if fault.kind == "llm_bad_request":
            raise CallFailed(fault.kind, fault.message)
        if fault.retry_after_s is not None and fault.retry_after_s > LONGEST_HOLD_S:
            if len(self._lanes) == 1:
                asked = f"{fault.message}; it asks to wait {fault.retry_after_s:.0f} s"
                raise DependencyDown(asked, fault.retry_after_s)
            lane.breaker.trip(fault.retry_after_s)
            return
        patience.count(fault.kind, self._answers)
        if patience.at_an_end:
            await self._give_up(fault, lane, patience)
        elif fault.retry_after_s is not None:
            if lane.turns_most_away:
                lane.route.concurrency.hold(fault.retry_after_s)
            await asyncio.sleep(fault.retry_after_s)
        else:
            # The share of faults known to be bad luck: for these there is nothing to wait for.
            by_luck = lane.route.concurrency.background
            await asyncio.sleep(patience.delay_s(fault.kind, lane.turns_most_away) * (1 - by_luck) ** 2)

    async def _give_up(self, fault: Fault, lane: _Lane, patience: Patience[_Lane]) -> None:
        """Raises, unless another endpoint may still be asked.

        Where no call at all was answered since this one first failed, a probe finds out who is to blame: the endpoint,
        then the job pauses, or this prompt, then it fails alone.
        """
        alone = patience.answers == self._answers and fault.kind in _FAULTS_OF_LOAD
        if alone and lane not in patience.given_up_on:
            patience.given_up_on.append(lane)
            lane.breaker.trip()
            if await self._open_lane() not in patience.given_up_on:
                patience.begin_anew()
                return
        raise CallFailed(fault.kind, f"{fault.message} (given up after {patience.spent} tries)")

    # -- one try ---------------------------------------------------------------------------------------------------

    async def _try(self, lane: _Lane, request: ChatRequest) -> Completion | Fault | None:
        """None where the endpoint went down before this try began."""
        concurrency = lane.route.concurrency
        permit = await concurrency.acquire()
        outcome: Completion | Fault | None = None
        try:
            if await self._admitted(lane, request):
                concurrency.start(permit)
                outcome = await self._attempt(lane, request)
        finally:
            concurrency.release(permit, _load(outcome))
        if outcome is not None:
            self._note(lane, outcome)
        await asyncio.sleep(0)  # whoever got the permit sends first; what came back can wait that long
        return outcome

    async def _admitted(self, lane: _Lane, request: ChatRequest) -> bool:
        """Wait until a try may begin now. False where the endpoint went down meanwhile."""
        concurrency, limits = lane.route.concurrency, lane.route.limits
        while True:
            while (hold_s := concurrency.held_for_s()) > 0:
                await asyncio.sleep(hold_s)
            if lane.breaker.is_open:
                return False
            if limits is None:
                return True
            concurrency.paced += 1
            try:
                await limits.acquire(request.most_tokens)
            finally:
                concurrency.paced -= 1
            if concurrency.held_for_s() <= 0:
                return not lane.breaker.is_open

    async def _attempt(self, lane: _Lane, request: ChatRequest) -> Completion | Fault:
        self._tries += 1
        lane.begin()
        if not self._hedges:
            return await lane.route.endpoint.attempt(request, self._deadline_s)
        return await lane.stragglers.run(
            lambda deadline_s: lane.route.endpoint.attempt(request, deadline_s),
            lambda deadline_s: self._second(lane, request, deadline_s),
            self._deadline_s,
        )

    def _second(
        self, lane: _Lane, request: ChatRequest, deadline_s: float
    ) -> "asyncio.Future[Completion | Fault] | None":
        """A hedge, where a permit and the rate limit have room for it now."""
        limits = lane.route.limits
        permit = lane.route.concurrency.try_acquire()
        if permit is None:
            return None
        if limits is not None and not limits.try_acquire(request.most_tokens):
            lane.route.concurrency.release(permit, "neutral")
            return None
        self._tries += 1
        lane.route.concurrency.start(permit)
        hedge = asyncio.ensure_future(lane.route.endpoint.attempt(request, deadline_s))
        # A callback, since a task that is cancelled before its first step runs no ``finally``.
        hedge.add_done_callback(lambda _: lane.route.concurrency.release(permit, "neutral"))
        return hedge

    def _note(self, lane: _Lane, outcome: Completion | Fault) -> None:
        self._observe(outcome.kind if isinstance(outcome, Fault) else "ok")
        if isinstance(outcome, Completion):
            lane.breaker.succeeded()
        elif outcome.kind == "llm_rate_limited":
            lane.turn_away()
        elif outcome.endpoint_down:
            lane.breaker.failed()

    async def _probe(self, route: Route) -> str | None:
        """What is wrong with the endpoint, if anything. Being told that the probe is a bad request is an answer."""
        if route.limits is not None:
            await route.limits.acquire(self._probe_request.most_tokens)
        self._probes += 1
        outcome = await route.endpoint.attempt(self._probe_request, min(self._deadline_s, _PROBE_DEADLINE_S))
        if isinstance(outcome, Completion) or outcome.kind == "llm_bad_request":
            return None
        return outcome.message


def _load(outcome: Completion | Fault | None) -> Outcome:
    """What a try says about the load that the endpoint bears."""
    if isinstance(outcome, Completion):
        return "ok"
    return "fault" if outcome is not None and outcome.kind in _FAULTS_OF_LOAD else "neutral"
