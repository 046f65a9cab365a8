"""Asks a second time when a try takes longer than nearly all others, and takes whichever answer comes first.

A second try is paid for, so only a ``budget``, a share of all tries, may be asked twice (Dean & Barroso, "The tail at
scale", 2013). Knows nothing of permits: the caller says whether there is room for a second try.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from textmill_synth.llm.request import Completion, Fault

Outcome = Completion | Fault
_SAMPLES = 512
_FEWEST_SAMPLES = 64
_QUANTILE = 0.95


@dataclass
class Stragglers:
    """What counts as late at one endpoint, and how many late tries were asked twice."""

    budget: float
    tries: int = 0
    hedged: int = 0
    won: int = 0
    _latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    _late_s: float | None = None
    _unsorted: int = 0

    def answered(self, latency_s: float) -> None:
        """A try brought an answer. The quantile is taken anew after every 64."""
        self._latencies_s.append(latency_s)
        self._unsorted += 1
        if self._unsorted >= _FEWEST_SAMPLES:
            self._unsorted = 0
            self._late_s = sorted(self._latencies_s)[int(len(self._latencies_s) * _QUANTILE)]

    async def run(
        self,
        first: Callable[[float], Awaitable[Outcome]],
        second: Callable[[float], "asyncio.Future[Outcome] | None"],
        deadline_s: float,
    ) -> Outcome:
        """``first``'s outcome, or ``second``'s if that answers sooner. Both are given how long they may take.

        ``second`` returns None where there is no room for it. The loser is cancelled, and so are both with the caller.
        """
        loop = asyncio.get_running_loop()
        self.tries += 1
        began = loop.time()
        tasks: list[asyncio.Future[Outcome]] = [asyncio.ensure_future(first(deadline_s))]
        try:
            if self._late_s is not None and self._late_s < deadline_s:
                await asyncio.wait(tasks, timeout=self._late_s)
                if not tasks[0].done() and self.hedged + 1 <= self.budget * self.tries:
                    hedge = second(deadline_s - self._late_s)
                    if hedge is not None:
                        self.hedged += 1
                        tasks.append(hedge)
            outcome = await _first_answer(tasks)
            if isinstance(outcome, Completion):
                self.answered(loop.time() - began)
                self.won += len(tasks) == 2 and not tasks[0].done()
            return outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _first_answer(tasks: list["asyncio.Future[Outcome]"]) -> Outcome:
    """The first completion; the first try's fault if there is none."""
    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if isinstance(task.result(), Completion):
                return task.result()
    return tasks[0].result()
