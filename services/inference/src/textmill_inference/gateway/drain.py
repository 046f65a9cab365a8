"""When to come again: how fast a model's queue drains, and how many were told to come back already. Pure sums."""

import math
from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 64
_MEMORY_S = 60.0
_UNKNOWN_S = 5
LONGEST_RETRY_S = 60
"""OpenAI's clients don't heed a longer one (they then come back after half a second)."""


@dataclass
class Drain:
    """Counts ends of requests. All times are seconds of one clock."""

    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _promised: float = 0.0
    _promised_at: float = 0.0

    def ended(self, now: float) -> None:
        self._ends.append(now)

    def per_s(self, now: float) -> float | None:
        """Requests that ended a second, of late. None if there were too few to say."""
        ends = self._ends
        while ends and ends[0] < now - _MEMORY_S:
            ends.popleft()
        if len(ends) < 2:
            return None
        return (len(ends) - 1) / max(now - ends[0], 1e-3)

    def retry_after_s(self, waiting: int, now: float) -> int:
        """When those who wait and those who were sent away before will have had their turn, in whole seconds.

        Each one that is sent away moves the next one's time, so that they don't all come back at once.
        """
        rate = self.per_s(now)
        if rate is None:
            return _UNKNOWN_S
        self._promised = max(0.0, self._promised - rate * (now - self._promised_at)) + 1
        self._promised_at = now
        return min(LONGEST_RETRY_S, max(1, math.ceil((waiting + self._promised) / rate)))
