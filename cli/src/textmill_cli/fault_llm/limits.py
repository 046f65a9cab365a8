"""What the server takes on at a time and in any minute, as a provider's limits do. More is answered 429."""

import math
from collections import deque
from dataclasses import dataclass, field

from textmill_cli.fault_llm.replies import RATE_LIMITED, Decision, Status

MINUTE_S = 60.0


@dataclass
class Limits:
    """No bound where it is None. ``admit`` is told the time, in seconds of any clock that never goes back."""

    per_minute: int | None = None
    at_once: int | None = None
    _admitted: deque[float] = field(default_factory=deque)

    def admit(self, now: float, open_requests: int) -> Decision | None:
        """Refuse with a 429, or count the request and return None. A refused one doesn't count towards the limit."""
        if self.at_once is not None and open_requests > self.at_once:
            return Decision(Status(429, "1", RATE_LIMITED), "over_concurrency")
        if self.per_minute is None:
            return None
        while self._admitted and self._admitted[0] <= now - MINUTE_S:
            self._admitted.popleft()
        if len(self._admitted) >= self.per_minute:
            free_in_s = self._admitted[0] + MINUTE_S - now if self._admitted else MINUTE_S
            return Decision(Status(429, str(math.ceil(free_in_s)), RATE_LIMITED), "over_rpm")
        self._admitted.append(now)
        return None
