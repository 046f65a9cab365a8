"""Opens when an endpoint serves nobody, so that calls wait instead of burning their tries. One small call probes it.

A probe asks for next to nothing, so no prompt is to blame when it fails: that tells an endpoint that is down from a
prompt that always ends in a 503. Its answer is thrown away. Belongs to one event loop; knows nothing of permits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

TRIP_AFTER = 8
"""So many faults of the endpoint in a row, without a success."""
LONGEST_REST_S = 30.0


@dataclass(eq=False)
class Breaker:
    """``probe`` makes one try and returns what went wrong, or None. ``rest_s`` is how long to wait before the n-th.

    After ``give_up_after`` failed probes the endpoint counts as ``down``; it is probed on while there is another.
    """

    probe: Callable[[], Awaitable[str | None]]
    rest_s: Callable[[int], float]
    give_up_after: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when this breaker closes or its endpoint is given up; shared by the breakers of one client."""
    on_close: Callable[[], None] = lambda: None
    down: str | None = None
    _faults: int = 0
    _error: BaseException | None = None
    _probing: "asyncio.Task[None] | None" = None

    @property
    def is_open(self) -> bool:
        return self._probing is not None

    def succeeded(self) -> None:
        self._faults = 0

    def failed(self) -> None:
        """The endpoint itself failed a try."""
        self._faults += 1
        if self._faults >= TRIP_AFTER:
            self.trip()

    def trip(self, rest_s: float = 0.0) -> None:
        """Let nobody through until a probe succeeds; the first comes no sooner than after ``rest_s``."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe_until_up(rest_s))

    def raise_if_broken(self) -> None:
        """Raises what a probe raised, such as ``JobFailed`` for a key that is no longer good."""
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _probe_until_up(self, rest_s: float) -> None:
        try:
            for number in count(1):
                await asyncio.sleep(max(rest_s if number == 1 else 0.0, min(LONGEST_REST_S, self.rest_s(number))))
                wrong = await self.probe()
                if wrong is None:
                    break
                if number >= self.give_up_after:
                    self.down = wrong
                    self.changed.set()
        except Exception as exc:  # whoever waits for this breaker has to hear of it
            self._error = exc
            self.changed.set()
            return
        self._faults, self.down, self._probing = 0, None, None
        self.on_close()
        self.changed.set()
