"""A sum over the last minute or day, in constant memory. Knows neither keys nor limits."""

import heapq
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

_ANCHOR = time.time() - time.monotonic()


def steady_time() -> float:
    """Unix time that doesn't jump while this process lives, also when somebody sets the clock."""
    return _ANCHOR + time.monotonic()


@dataclass
class Window:
    """A sum over the last ``length_s`` seconds, in slots that are forgotten whole and never early.

    An amount counts until the end of its slot has left the window: never too short, and at most ``length_s / slots``
    too long. So a limit on the sum holds over every window, however it lies, and in the long run
    ``slots / (slots + 1)`` of it can be used. Slots are numbered from the epoch, so that processes can add theirs up.
    """

    length_s: float
    slots: int
    total: int = 0
    _slots: deque[list[int]] = field(default_factory=deque)
    """``[number, amount]``, oldest first."""

    def add(self, amount: int, now: float) -> int:
        """Returns the number of the slot that it was counted in."""
        number = self._number(now)
        if not self._slots or self._slots[-1][0] < number:
            self._slots.append([number, 0])
        self._slots[-1][1] += amount
        self.total += amount
        return self._slots[-1][0]

    def take_back(self, amount: int, number: int) -> None:
        """Undo an ``add``. Does nothing where its slot is already forgotten."""
        for slot in reversed(self._slots):
            if slot[0] == number:
                slot[1] -= amount
                self.total -= amount
            if slot[0] <= number:
                return

    def forget(self, now: float) -> None:
        """Drop what has left the window; call it before you read ``total``."""
        oldest = self._number(now) - self.slots
        while self._slots and self._slots[0][0] < oldest:
            self.total -= self._slots.popleft()[1]

    def kept(self) -> list[tuple[int, int]]:
        """Numbers and amounts of the slots, oldest first."""
        return [(number, amount) for number, amount in self._slots]

    def fill(self, kept: Iterable[tuple[int, int]]) -> None:
        """Hold these slots, in any order, and nothing else."""
        sums: dict[int, int] = {}
        for number, amount in kept:
            sums[number] = sums.get(number, 0) + amount
        self._slots = deque([number, sums[number]] for number in sorted(sums))
        self.total = sum(sums.values())

    def leaves_at(self, number: int) -> float:
        """When the slot of this number is forgotten, in Unix time."""
        return (number + 1 + self.slots) * self.length_s / self.slots

    def _number(self, now: float) -> int:
        return int(now * self.slots / self.length_s)


def minute() -> Window:
    return Window(60.0, 60)


def day() -> Window:
    return Window(86_400.0, 96)


def room_at(windows: tuple[Window, Window], amount: int, now: float) -> float:
    """When so much of what the two hold has left them, or all of it if they hold less. ``now`` if they are empty."""
    at = now
    for number, held in heapq.merge(windows[0].kept(), windows[1].kept()):
        if amount <= 0:
            break
        at = windows[0].leaves_at(number)
        amount -= held
    return at
