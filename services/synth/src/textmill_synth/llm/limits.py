"""Waits until a try may begin under the limits of requests and tokens a minute, which all workers share (``claims``).

A claim is a batch: for the tries that wait now, and, while less than half of the limit is in use, for as many more as
the last claim was spent on. A worker leaves the others their part of what is free. Belongs to one event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from textmill.store import ObjectStore
from textmill_synth.llm.claims import LONGEST_VALID_S, NOTHING, VALID_S, Claim, ClaimLog, Quota
from textmill_synth.llm.request import CallFailed

CLAIM_EVERY_S = 0.25
"""The pause between two claims, times the workers at work: so the log grows by about four claims a second in all."""
_LONGEST_WAIT_S = 5.0


@dataclass(eq=False)
class _Waiting:
    turn: "asyncio.Future[None]"
    need: Quota


class RateLimits:
    """``per_minute`` has infinities for what isn't limited. ``clock`` tells Unix time in seconds."""

    def __init__(
        self, store: ObjectStore, url: str, per_minute: Quota, worker: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = ClaimLog(store, url)
        self._per_minute = per_minute
        self._worker = worker
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._claiming: asyncio.Task[None] | None = None
        self._left = NOTHING
        self._spent = NOTHING
        self._valid_until = 0.0
        self._valid_s = LONGEST_VALID_S
        """Of the next claim: four times as long as the last took to be written, within bounds."""
        self._next_claim_at = 0.0

    async def acquire(self, tokens: int) -> None:
        """Wait until one request with so many tokens may begin; it must then begin at once.

        Raises:
            CallFailed: so many tokens never fit in a minute.
            DependencyDown: the store that holds the claims can't be reached.
        """
        need = Quota(1, tokens)
        if not self._per_minute.holds(need):
            raise CallFailed(
                "llm_over_token_limit",
                f"the call may take {tokens} tokens and TEXTMILL_SYNTH_TOKENS_PER_MINUTE allows "
                f"{self._per_minute.tokens:.0f}: split the corpus into smaller passages, ask for fewer "
                "max_answer_tokens, or raise the limit",
            )
        if not self._waiting and self._take(need):
            return
        waiting = _Waiting(asyncio.get_running_loop().create_future(), need)
        self._waiting.append(waiting)
        if self._claiming is None or self._claiming.done():
            self._claiming = asyncio.create_task(self._serve())
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise  # what it was granted lapses

    def try_acquire(self, tokens: int) -> bool:
        """True if one request with so many tokens may begin now, out of what is claimed already."""
        return not self._waiting and self._take(Quota(1, tokens))

    async def close(self) -> None:
        """Stop claiming. What is left lapses by itself."""
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.gather(self._claiming, return_exceptions=True)

    def _take(self, need: Quota) -> bool:
        if asyncio.get_running_loop().time() >= self._valid_until or not self._left.holds(need):
            return False
        self._left, self._spent = self._left - need, self._spent + need
        return True

    async def _serve(self) -> None:
        """Claim until nobody waits."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._log.read, loop.time())
            while self._waiting:
                await asyncio.sleep(self._next_claim_at - loop.time())
                wait_s = await self._claim()
                self._hand_out()
                await asyncio.sleep(wait_s)
                if not self._waiting:
                    await asyncio.to_thread(self._log.sweep, self._clock(), loop.time())
        except Exception as exc:  # whoever waits has to hear of it
            while self._waiting:
                self._fail(self._waiting.popleft(), exc)

    async def _claim(self) -> float:
        """One attempt to write a claim. Returns how long to wait before the next is of use."""
        now, at = asyncio.get_running_loop().time(), self._clock()
        await asyncio.to_thread(self._log.read, now)
        weighing = self._log.weighing(at)
        used = sum((Quota(claim.requests, claim.tokens) for claim in weighing), NOTHING)
        workers = len({claim.worker for claim in weighing} | {self._worker})
        wanted = self._wanted(self._per_minute - used, workers)
        if wanted is None:
            return self._until_room_s(weighing, used, at)
        claim = Claim(
            worker=self._worker,
            at=at,
            requests=int(wanted.requests),
            tokens=int(wanted.tokens),
            valid_s=self._valid_s,
        )
        if await asyncio.to_thread(self._log.append, claim, now):
            self._left, self._spent, self._valid_until = wanted, NOTHING, now + self._valid_s
            self._next_claim_at = now + CLAIM_EVERY_S * workers
        took_s = asyncio.get_running_loop().time() - now
        self._valid_s = min(LONGEST_VALID_S, max(VALID_S, 4 * took_s))
        return 0.0

    def _wanted(self, room: Quota, workers: int) -> Quota | None:
        """What to claim out of ``room``; None where not even the first that waits fits."""
        wanted, mine = NOTHING, room * (1 / workers)
        for waiting in self._waiting:
            more = wanted + waiting.need
            if not (mine if wanted.requests else room).holds(more):
                break
            wanted = more
        if not wanted.requests:
            return None
        ahead = wanted + self._spent
        return ahead if room.holds(ahead + self._per_minute * 0.5) else wanted

    def _until_room_s(self, weighing: list[Claim], used: Quota, at: float) -> float:
        """Until enough claims weigh no more for the first that waits."""
        for claim in sorted(weighing, key=lambda claim: claim.weighs_until):
            used -= Quota(claim.requests, claim.tokens)
            if not self._waiting or (self._per_minute - used).holds(self._waiting[0].need):
                return min(_LONGEST_WAIT_S, max(CLAIM_EVERY_S, claim.weighs_until - at))
        return CLAIM_EVERY_S

    def _hand_out(self) -> None:
        while self._waiting and (self._waiting[0].turn.done() or self._take(self._waiting[0].need)):
            waiting = self._waiting.popleft()
            if not waiting.turn.done():
                waiting.turn.set_result(None)

    @staticmethod
    def _fail(waiting: _Waiting, error: Exception) -> None:
        if not waiting.turn.done():
            waiting.turn.set_exception(error)
