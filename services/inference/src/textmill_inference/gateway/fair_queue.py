"""Who is next: a queue that is fair across keys by tokens, not by requests. Pure data; knows no clock and no engine.

Each key has a counter of the tokens it was served, divided by its weight; the key that waits with the lowest is next
(the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A key that comes
back from idling is lifted to the counter last served, as start-time fair queuing does (Goyal, Vin and Cheng, SIGCOMM
1996): it has neither saved up a turn nor is it made to pay for having used what nobody else wanted.

A request's tokens are known when it has ended. Until then the mean of the key's own last requests stands for them, as
in the paper's variant with length prediction, and the difference is settled afterwards.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
_MEMORY = 0.2
"""How much the last request counts in the mean: about the last ten are remembered."""


@dataclass
class _Line(Generic[T]):
    """One key's. ``counter`` and ``cost`` are tokens by weight; ``cost`` is that of all who wait here."""

    weight: float
    counter: float = 0.0
    mean: float | None = None
    cost: float = 0.0
    waiting: "OrderedDict[T, int]" = field(default_factory=OrderedDict)

    def likely(self, tokens: int) -> float:
        """What a request of at most ``tokens`` will probably take, by weight."""
        return (tokens if self.mean is None else min(tokens, self.mean)) / self.weight


class FairQueue(Generic[T]):
    """Items are any hashable things, each in it once. Finding the next looks at each key that has somebody waiting."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._busy: dict[str, _Line[T]] = {}
        self._virtual = 0.0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def join(self, key: str, weight: float, tokens: int, item: T) -> None:
        line = self._line(key, weight)
        if not line.waiting:
            line.counter = max(line.counter, self._virtual)
            self._busy[key] = line
        line.waiting[item] = tokens
        line.cost += tokens / line.weight
        self._length += 1

    def leave(self, key: str, item: T) -> bool:
        """False if it wasn't there (any more)."""
        line = self._busy.get(key)
        if line is None or item not in line.waiting:
            return False
        self._take(key, line, item)
        return True

    def pop(self) -> tuple[T, float]:
        """The next, and what its key was charged. Raises ``IndexError`` if nobody waits."""
        if not self._busy:
            raise IndexError("nobody waits")
        key, line = min(self._busy.items(), key=lambda pair: pair[1].counter)
        item = next(iter(line.waiting))
        tokens = self._take(key, line, item)
        return item, self._charge(line, tokens)

    def pass_by(self, key: str, weight: float, tokens: int) -> float:
        """Charge a request that is served without waiting; returns what was charged."""
        line = self._line(key, weight)
        line.counter = max(line.counter, self._virtual)
        return self._charge(line, tokens)

    def settle(self, key: str, charged: float, tokens: int) -> None:
        """The request has ended after ``tokens``."""
        line = self._lines[key]
        line.counter += tokens / line.weight - charged
        line.mean = tokens if line.mean is None else line.mean + _MEMORY * (tokens - line.mean)

    def refund(self, key: str, charged: float) -> None:
        """The request was never served."""
        self._lines[key].counter -= charged

    def make_room(self, key: str, weight: float, tokens: int) -> T | None:
        """Turn the newest away of the key that wants most, by weight, if that isn't ``key`` with its new request.

        So a key that fills the queue keeps no other out. None: it is ``key`` that has to be turned away.
        """
        if not self._busy:
            return None
        own = self._busy.get(key)
        wanted = (own.cost if own is not None else 0.0) + tokens / weight
        greediest, line = max(self._busy.items(), key=lambda pair: pair[1].cost)
        if line is own or line.cost <= wanted:
            return None
        item = next(reversed(line.waiting))
        self._take(greediest, line, item)
        return item

    def _line(self, key: str, weight: float) -> _Line[T]:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(weight)
        return line

    def _take(self, key: str, line: _Line[T], item: T) -> int:
        tokens = line.waiting.pop(item)
        line.cost -= tokens / line.weight
        self._length -= 1
        if not line.waiting:
            line.cost = 0.0
            del self._busy[key]
        return tokens

    def _charge(self, line: _Line[T], tokens: int) -> float:
        self._virtual = max(self._virtual, line.counter)
        charged = line.likely(tokens)
        line.counter += charged
        return charged
