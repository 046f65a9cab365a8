"""How often one call is tried, and how long it waits in between. Decides nothing about other calls."""

import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from textmill_synth.llm.request import FaultKind

PATIENT_DOUBLINGS = 6
"""Of the delay, where the endpoint has to recover: after a 429, and between probes of one that is down."""
Lane = TypeVar("Lane")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter. Being told to wait (429) isn't failing, so it has its own bound, and patience.

    The wait after other faults stays short: relieving a busy endpoint is the limit's work, one that is down the
    breaker's.
    """

    max_tries: int = 5
    max_rate_limited: int = 15
    first_delay_s: float = 0.5

    def delay_s(self, faults: int, doublings: int = 3) -> float:
        """After so many faults: twice the last, up to so many doublings, less a random half of itself."""
        ceiling = self.first_delay_s * 2.0 ** min(faults - 1, doublings)
        return random.uniform(ceiling / 2, ceiling)


@dataclass(eq=False)
class Patience(Generic[Lane]):
    """What one call has gone through. ``answers`` is how many calls had been answered when it first failed.

    Its waits grow only while nobody is answered, or where most tries are turned away: a fault that hits some calls at
    random has nothing to recover from.
    """

    policy: RetryPolicy
    answers: int | None = None
    tries: int = 0
    rate_limited: int = 0
    given_up_on: list[Lane] = field(default_factory=list)
    _in_a_row: int = 0
    """Faults of one kind while no call at all was answered."""
    _last: tuple[FaultKind, int] | None = None

    @property
    def at_an_end(self) -> bool:
        return self.tries >= self.policy.max_tries or self.rate_limited >= self.policy.max_rate_limited

    @property
    def spent(self) -> int:
        return self.tries + self.rate_limited

    def count(self, kind: FaultKind, answers: int) -> None:
        """A fault, when so many calls had been answered."""
        if self.answers is None:
            self.answers = answers
        self._in_a_row = self._in_a_row + 1 if self._last == (kind, answers) else 1
        self._last = (kind, answers)
        if kind == "llm_rate_limited":
            self.rate_limited += 1
        else:
            self.tries += 1

    def delay_s(self, kind: FaultKind, turned_away: bool) -> float:
        """Before the next try, after a fault of this kind. ``turned_away``: most tries of all calls got a 429."""
        if kind != "llm_rate_limited":
            return self.policy.delay_s(self._in_a_row)
        return self.policy.delay_s(self.rate_limited if turned_away else self._in_a_row, PATIENT_DOUBLINGS)

    def begin_anew(self) -> None:
        """At another endpoint."""
        self.tries = self.rate_limited = self._in_a_row = 0
