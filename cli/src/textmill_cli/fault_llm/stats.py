"""Counts what a server has been asked and how that ended, so that a test can assert what its client did."""

from collections import Counter, deque
from dataclasses import dataclass, field

from pydantic import JsonValue

from textmill_cli.fault_llm.limits import MINUTE_S


@dataclass
class Stats:
    """Times are in seconds of one clock that never goes back; ``began`` is its reading at the start.

    A request is open from its head until its reply is written or its client has gone. ``busy_s`` in the report is
    from the first request's head to the last one's end.
    """

    began: float
    requests: int = 0
    abandoned: int = 0
    most_at_once: int = 0
    most_in_a_minute: int = 0
    longest_open_s: float = 0.0
    closed: int = 0
    closed_open_s: float = 0.0
    """How long those closed were open, in all."""
    first_opened: float | None = None
    last_closed: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    per_minute: Counter[int] = field(default_factory=Counter)
    _open: dict[int, float] = field(default_factory=dict)
    _last_minute: deque[float] = field(default_factory=deque)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    def open(self, now: float) -> int:
        """Returns the number of the request, from 0."""
        number = self.requests
        self.requests += 1
        self._open[number] = now
        if self.first_opened is None:
            self.first_opened = now
        self.most_at_once = max(self.most_at_once, len(self._open))
        self.per_minute[int((now - self.began) // MINUTE_S)] += 1
        self._last_minute.append(now)
        while self._last_minute[0] <= now - MINUTE_S:
            self._last_minute.popleft()
        self.most_in_a_minute = max(self.most_in_a_minute, len(self._last_minute))
        return number

    def close(self, number: int, now: float) -> None:
        open_s = now - self._open.pop(number)
        self.longest_open_s = max(self.longest_open_s, open_s)
        self.closed += 1
        self.closed_open_s += open_s
        self.last_closed = now

    def report(self, now: float) -> dict[str, JsonValue]:
        """``tries`` and ``answered`` are by call: the hash of a request's body."""
        open_s = max((now - since for since in self._open.values()), default=0.0)
        last = int((now - self.began) // MINUTE_S)
        return {
            "seconds": round(now - self.began, 3),
            "busy_s": round(self.last_closed - self.first_opened, 3) if self.last_closed and self.first_opened else 0.0,
            "requests": self.requests,
            "outcomes": dict(self.outcomes),
            "abandoned": self.abandoned,
            "open": len(self._open),
            "most_at_once": self.most_at_once,
            "most_in_a_minute": self.most_in_a_minute,
            "per_minute": [self.per_minute[minute] for minute in range(last + 1)],
            "longest_open_s": round(max(self.longest_open_s, open_s), 3),
            "mean_open_s": round(self.closed_open_s / self.closed, 4) if self.closed else 0.0,
            "tries": dict(self.tries),
            "answered": dict(self.answered),
        }
