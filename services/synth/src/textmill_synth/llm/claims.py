"""Requests and tokens a minute, shared by all workers that call one endpoint: a log of claims in the object store.

Layout: ``limits/<endpoint>/<seq>.json``, written create-only, ``seq`` one higher each time. A claim allows its worker
to *begin* so many requests, with so many tokens, from ``at`` until ``valid_s`` later; what isn't spent by then lapses.
No worker waits for another, and one that dies leaves nothing to clean up but a claim that lapses.

A worker stamps ``at`` with its clock, reads the log to its end, sums all claims ``c`` with
``c.at + c.valid_s + 60 + SKEW_S > at``, and writes a claim that fits beside them. When the next number is taken, it
reads what took it and decides anew.

*No 60 s hold more than the limit.* Let [t, t + 60) be any minute and c the highest-numbered claim of which a request
began in it. Numbers have no gaps, so c's worker had read every lower one. Let b be a lower claim with a request in the
same minute. Between the two requests less than 60 s passed; b's began at most at ``b.at + b.valid_s`` by its worker's
clock, c's at least at ``c.at`` by its own, and clocks differ by at most ``SKEW_S``. So
``c.at < b.at + b.valid_s + 60 + SKEW_S``: b was in the sum. Hence all requests of that minute together fit the limit.

The premise is that clocks, and the ways to the endpoint, differ by less than ``SKEW_S``. The price is that a claim
weighs for ``60 + valid_s + SKEW_S`` seconds: at most 60/63 of the limit can be used in the long run.

*Sweeping keeps numbers unique.* A claim is deleted when it weighs for nobody any more and this worker has known it for
a minute, and never the last. Who decided without knowing it has lost his own claim by then: ``valid_s`` is over.

``valid_s`` has to outlast the write itself: two seconds, and up to ten where the store is slow.
"""

import hashlib
from collections import deque
from dataclasses import dataclass

from pydantic import Field

from textmill.contracts.base import StoredContract
from textmill.errors import NotFound
from textmill.store import ObjectStore

WINDOW_S = 60.0
VALID_S = 2.0
LONGEST_VALID_S = 10.0
SKEW_S = 1.0


class Claim(StoredContract):
    """``at`` is the worker's Unix time in seconds, stamped before it read the log."""

    worker: str
    at: float
    requests: int
    tokens: int
    valid_s: float = Field(default=VALID_S, le=LONGEST_VALID_S)

    @property
    def weighs_until(self) -> float:
        return self.at + self.valid_s + WINDOW_S + SKEW_S


@dataclass(frozen=True)
class Quota:
    """So many requests and tokens; as a limit, a minute of them."""

    requests: float
    tokens: float

    def holds(self, other: "Quota") -> bool:
        return other.requests <= self.requests and other.tokens <= self.tokens

    def __add__(self, other: "Quota") -> "Quota":
        return Quota(self.requests + other.requests, self.tokens + other.tokens)

    def __sub__(self, other: "Quota") -> "Quota":
        return Quota(self.requests - other.requests, self.tokens - other.tokens)

    def __mul__(self, share: float) -> "Quota":
        return Quota(self.requests * share, self.tokens * share)


NOTHING = Quota(0, 0)


def endpoint_id(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class ClaimLog:
    """One worker's view of the log. Blocking; never two calls at a time. ``now`` is the caller's monotonic seconds."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store = store
        self._prefix = f"limits/{endpoint_id(url)}/"
        self._last = 0
        self._known: deque[tuple[int, float, Claim]] = deque()
        """Number, when it was read and claim, of all that may still be in the store."""

    def read(self, now: float) -> None:
        """Take in what was written since the last time. One listing, and one GET for each claim."""
        for info in list(self._store.list(self._prefix, after=self._key(self._last) if self._last else "")):
            number = int(info.key.removeprefix(self._prefix).removesuffix(".json"))
            self._take_in(number, now)
            self._last = number  # also where it was swept meanwhile

    def append(self, claim: Claim, now: float) -> bool:
        """Write the next claim. False if another worker's has its number: that one is then read."""
        number = self._last + 1
        if not self._store.create(self._key(number), claim.to_json()):
            self._last += self._take_in(number, now)
            return False
        self._known.append((number, now, claim))
        self._last = number
        return True

    def weighing(self, at: float) -> list[Claim]:
        return [claim for _, _, claim in self._known if claim.weighs_until > at]

    def sweep(self, at: float, now: float) -> None:
        """Delete the oldest claims that count for nobody."""
        while len(self._known) > 1:
            number, read_at, claim = self._known[0]
            if claim.weighs_until + WINDOW_S > at or read_at + WINDOW_S > now:
                return
            self._store.delete(self._key(number))
            self._known.popleft()

    def _take_in(self, number: int, now: float) -> bool:
        """False where there is none (any more)."""
        try:
            claim = Claim.model_validate_json(self._store.get(self._key(number)))
        except NotFound:
            return False
        self._known.append((number, now, claim))
        return True

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:012d}.json"
