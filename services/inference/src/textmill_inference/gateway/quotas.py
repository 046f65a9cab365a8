"""What one key may use: an account with a meter for each of its limits. Knows no HTTP and no queue.

The promise, over any window however it lies: what counts in it is never more than the limit, as long as no request uses
more than was reserved for it; where one does, that excess is the most it can be over. Requests count when they come.
Tokens are reserved when a request comes and counted when it ends, since nobody knows before how many it will be: what
is counted and what is reserved are held under the limit together. With several gateways, what the others have used
since they last told comes on top (see ``usage_exchange``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from textmill.contracts.keys import KeyLimits, KeyUse, MeterUse, Quota, QuotaUse
from textmill_inference.gateway.windows import Window, day, minute, room_at, steady_time

_UNKNOWN_WAIT_S = 1.0
"""Where requests under way hold the room: nobody knows when they end."""


@dataclass(frozen=True)
class Refusal:
    """Which quota, how much of it is used, and when to come again: None where that would be in vain."""

    quota: Quota
    used: int
    allowed: int
    wait_s: float | None


@dataclass
class Reservation:
    """What one request has taken. ``slot`` is where it was counted as a request."""

    tokens: int
    slot: int = 0
    open: bool = True


@dataclass
class Meter:
    """One limit and its use: counted in ``window``, reserved by what is under way, and the same at other gateways."""

    quota: Quota
    allowed: int
    window: Window
    elsewhere: Window
    reserved: int = 0
    reserved_elsewhere: int = 0

    def used(self, now: float) -> int:
        self.window.forget(now)
        self.elsewhere.forget(now)
        return self.window.total + self.elsewhere.total + self.reserved + self.reserved_elsewhere

    def amount(self, tokens: int) -> int:
        """What a request of so many tokens takes of it."""
        return tokens if self.quota in ("tokens_per_minute", "tokens_per_day") else 1

    def refusal(self, tokens: int, now: float) -> Refusal | None:
        used, amount = self.used(now), self.amount(tokens)
        excess = used + amount - self.allowed
        if excess <= 0:
            return None
        if amount > self.allowed:
            return Refusal(self.quota, used, self.allowed, None)
        wait_s = room_at((self.window, self.elsewhere), excess, now) - now
        return Refusal(self.quota, used, self.allowed, max(_UNKNOWN_WAIT_S, wait_s))

    def take(self, reservation: Reservation, now: float) -> None:
        if self.quota == "requests_per_minute":
            reservation.slot = self.window.add(1, now)
        else:
            self.reserved += self.amount(reservation.tokens)

    def settle(self, reservation: Reservation, tokens: int, now: float) -> None:
        if self.quota == "requests_per_minute":
            return
        self.reserved -= self.amount(reservation.tokens)
        if self.quota != "concurrent":
            self.window.add(tokens, now)

    def give_back(self, reservation: Reservation) -> None:
        if self.quota == "requests_per_minute":
            self.window.take_back(1, reservation.slot)
        else:
            self.reserved -= self.amount(reservation.tokens)


def _meters(limits: KeyLimits) -> list[Meter]:
    given: tuple[tuple[Quota, int | None, Callable[[], Window]], ...] = (
        ("concurrent", limits.concurrent, minute),
        ("requests_per_minute", limits.requests_per_minute, minute),
        ("tokens_per_minute", limits.tokens_per_minute, minute),
        ("tokens_per_day", limits.tokens_per_day, day),
    )
    return [Meter(quota, allowed, window(), window()) for quota, allowed, window in given if allowed is not None]


@dataclass
class Account:
    """The use of one key. Not for several threads."""

    limits: KeyLimits
    group: str = ""
    clock: Callable[[], float] = steady_time
    meters: Sequence[Meter] = field(init=False)

    def __post_init__(self) -> None:
        self.meters = _meters(self.limits)

    def reserve(self, tokens: int) -> Reservation | Refusal:
        """Take room for a request of at most ``tokens``, or take none and say which limit keeps it out longest."""
        now = self.clock()
        refusals = [refusal for meter in self.meters if (refusal := meter.refusal(tokens, now)) is not None]
        if refusals:
            return max(refusals, key=lambda refusal: (refusal.wait_s is None, refusal.wait_s or 0.0))
        reservation = Reservation(tokens)
        for meter in self.meters:
            meter.take(reservation, now)
        return reservation

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """The request has ended and has used so many tokens. A second call does nothing."""
        if reservation.open:
            reservation.open = False
            now = self.clock()
            for meter in self.meters:
                meter.settle(reservation, tokens, now)

    def give_back(self, reservation: Reservation) -> None:
        """The request never reached an engine: it counts for nothing. A second call does nothing."""
        if reservation.open:
            reservation.open = False
            for meter in self.meters:
                meter.give_back(reservation)

    def uses(self) -> Iterator[QuotaUse]:
        """Of each limit, what is used or reserved."""
        now = self.clock()
        return (QuotaUse(quota=meter.quota, used=meter.used(now), allowed=meter.allowed) for meter in self.meters)

    # -- other gateways --------------------------------------------------------------------------------------------

    def told(self) -> KeyUse:
        """What other gateways need to know."""
        now = self.clock()
        for meter in self.meters:
            meter.window.forget(now)
        return KeyUse(
            meters={m.quota: MeterUse(slots=m.window.kept(), reserved=m.reserved) for m in self.meters},
        )

    def hear(self, uses: Sequence[KeyUse]) -> None:
        """What all others use, in place of what was heard before."""
        for meter in self.meters:
            found = [use.meters[meter.quota] for use in uses if meter.quota in use.meters]
            meter.elsewhere.fill(slot for use in found for slot in use.slots)
            meter.reserved_elsewhere = sum(use.reserved for use in found)
