"""Windows and accounts on a clock of the test's own: no window, however it lies, holds more than the limit."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.contracts.keys import KeyLimits, KeyUse, MeterUse
from textmill_inference.gateway.quotas import Account, Refusal, Reservation
from textmill_inference.gateway.windows import Window, room_at

AMOUNTS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 100)), max_size=60)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def reserved(found: Reservation | Refusal) -> Reservation:
    assert isinstance(found, Reservation), found
    return found


def refused(found: Reservation | Refusal) -> Refusal:
    assert isinstance(found, Refusal), found
    return found


@given(AMOUNTS)
def test_a_window_holds_all_of_its_length_and_at_most_a_slot_more(steps: list[tuple[float, int]]) -> None:
    window, now, added = Window(60.0, 60), 5_000.0, []
    for after_s, amount in steps:
        now += after_s
        window.add(amount, now)
        added.append((now, amount))
        window.forget(now)
        assert sum(n for at, n in added if at > now - 60) <= window.total
        assert window.total <= sum(n for at, n in added if at > now - 61)
        assert window.total == sum(amount for _, amount in window.kept())


@given(AMOUNTS, st.integers(1, 500))
def test_room_is_there_when_it_was_promised_and_not_before(steps: list[tuple[float, int]], amount: int) -> None:
    now = 5_000.0
    window, other = Window(60.0, 60), Window(60.0, 60)
    for number, (after_s, more) in enumerate(steps):
        now += after_s
        (window, other)[number % 2].add(more, now)
    for one in (window, other):
        one.forget(now)
    total = window.total + other.total
    at = room_at((window, other), amount, now)
    for when, enough in ((at - 1e-3, False), (at + 1e-6, True)):
        for one in (window, other):
            one.forget(max(now, when))
        freed = total - window.total - other.total
        if enough:
            assert freed >= min(amount, total)
        elif when > now and amount <= total:
            assert freed < amount


def test_taking_back_undoes_an_addition_unless_it_is_forgotten() -> None:
    window = Window(60.0, 60)
    early, late = window.add(1, 1000.0), window.add(1, 1030.0)
    window.take_back(1, late)
    assert window.total == 1
    window.forget(1070.0)
    window.take_back(1, early)
    assert window.total == 0


STEPS = st.lists(
    st.tuples(
        st.floats(0, 20), st.integers(1, 40), st.sampled_from(["settle", "over", "give back"]), st.floats(0.1, 90)
    ),
    max_size=80,
)


@dataclass
class _Seen:
    arrivals: list[float] = field(default_factory=list)
    used: list[tuple[float, float, int]] = field(default_factory=list)
    """From, to, tokens of each request: they count as made at its end."""
    excess: int = 0


@settings(deadline=None)
@given(STEPS)
def test_over_any_window_never_more_than_the_limit_plus_what_went_over_its_reservation(
    steps: list[tuple[float, int, str, float]],
) -> None:
    clock, seen = Clock(), _Seen()
    account = Account(KeyLimits(requests_per_minute=7, tokens_per_minute=100, concurrent=3), clock=clock)
    under_way: list[tuple[float, Reservation, str, float]] = []

    def end_until(now: float) -> None:
        for item in sorted(under_way, key=lambda item: item[0]):
            end, reservation, how, began = item
            if end > now:
                return
            under_way.remove(item)
            clock.now = end
            if how == "give back":
                account.give_back(reservation)
                seen.arrivals.remove(began)
            else:
                tokens = reservation.tokens + (5 if how == "over" else 0)
                seen.excess += tokens - reservation.tokens
                seen.used.append((began, end, tokens))
                account.settle(reservation, tokens)
                account.settle(reservation, 1_000)  # a second time does nothing

    now = clock.now
    for after_s, tokens, how, takes_s in steps:
        now += after_s
        end_until(now)
        clock.now = now
        found = account.reserve(tokens)
        if isinstance(found, Reservation):
            under_way.append((now + takes_s, found, how, now))
            seen.arrivals.append(now)
        assert len(under_way) <= 3
        meters = {meter.quota: meter for meter in account.meters}
        assert meters["concurrent"].reserved == len(under_way)
        assert meters["tokens_per_minute"].reserved == sum(item[1].tokens for item in under_way)
    end_until(now + 1_000)
    assert all(meter.reserved == 0 for meter in account.meters)
    for start in [*seen.arrivals, *(end for _, end, _ in seen.used)]:
        assert sum(start <= at < start + 60 for at in seen.arrivals) <= 7
        assert sum(tokens for _, end, tokens in seen.used if start <= end < start + 60) <= 100 + seen.excess


def test_a_full_minute_says_when_it_has_room_and_then_has_it() -> None:
    clock = Clock()
    account = Account(KeyLimits(tokens_per_minute=100), clock=clock)
    account.settle(reserved(account.reserve(60)), 60)
    clock.now += 10
    account.settle(reserved(account.reserve(40)), 40)
    refusal = refused(account.reserve(50))
    assert (refusal.quota, refusal.used, refusal.allowed) == ("tokens_per_minute", 100, 100)
    assert refusal.wait_s is not None
    clock.now += refusal.wait_s - 0.001
    assert isinstance(account.reserve(50), Refusal)
    clock.now += 0.002
    assert isinstance(account.reserve(50), Reservation)


def test_what_a_quota_never_allows_is_not_to_be_waited_for() -> None:
    account = Account(KeyLimits(tokens_per_minute=100, tokens_per_day=50), clock=Clock())
    refusal = refused(account.reserve(60))
    assert (refusal.quota, refusal.wait_s) == ("tokens_per_day", None)


def test_the_longest_wait_is_the_one_that_is_told() -> None:
    clock = Clock()
    account = Account(KeyLimits(requests_per_minute=1, tokens_per_day=100), clock=clock)
    account.settle(reserved(account.reserve(100)), 100)
    assert refused(account.reserve(1)).quota == "tokens_per_day"


def test_a_day_is_not_over_at_midnight() -> None:
    clock = Clock(now=86_400.0 * 20_000 - 60)
    account = Account(KeyLimits(tokens_per_day=100), clock=clock)
    account.settle(reserved(account.reserve(100)), 100)
    clock.now += 3_600
    assert isinstance(account.reserve(1), Refusal)
    clock.now += 86_400
    assert isinstance(account.reserve(1), Reservation)


def test_tokens_that_were_not_used_are_free_again() -> None:
    account = Account(KeyLimits(tokens_per_minute=100), clock=Clock())
    first = reserved(account.reserve(90))
    assert isinstance(account.reserve(20), Refusal)
    account.settle(first, 30)
    assert isinstance(account.reserve(70), Reservation)


def test_requests_under_way_do_not_count_twice_a_minute() -> None:
    """A request that takes long frees its place in the minute 60 s after it came, not after it ended."""
    clock = Clock()
    account = Account(KeyLimits(requests_per_minute=1), clock=clock)
    account.reserve(1)
    clock.now += 61
    assert isinstance(account.reserve(1), Reservation)


def test_what_other_gateways_use_counts_here() -> None:
    clock = Clock()
    here, there = (Account(KeyLimits(tokens_per_minute=100, concurrent=2), clock=clock) for _ in range(2))
    there.settle(reserved(there.reserve(50)), 50)
    there.reserve(20)
    here.hear([there.told(), KeyUse(meters={"concurrent": MeterUse(reserved=0)})])
    assert isinstance(here.reserve(31), Refusal)
    here.give_back(reserved(here.reserve(30)))
    here.hear([])
    assert isinstance(here.reserve(100), Reservation)


def test_an_account_without_limits_keeps_nothing() -> None:
    account = Account(KeyLimits(), clock=Clock())
    for _ in range(100):
        account.settle(reserved(account.reserve(10**9)), 10**9)
    assert list(account.uses()) == []


@pytest.mark.parametrize("wait", [1, 30])
def test_uses_say_what_is_counted_and_reserved(wait: int) -> None:
    clock = Clock()
    account = Account(KeyLimits(requests_per_minute=4, tokens_per_minute=100), clock=clock)
    account.settle(reserved(account.reserve(50)), 10)
    account.reserve(5)
    clock.now += wait
    assert {use.quota: (use.used, use.allowed) for use in account.uses()} == {
        "requests_per_minute": (2, 4),
        "tokens_per_minute": (15, 100),
    }


def test_slots_are_in_order() -> None:
    window = Window(60.0, 60)
    window.fill([(5, 1), (3, 2), (5, 4)])
    assert window.kept() == [(3, 2), (5, 5)]
    assert all(a < b for (a, _), (b, _) in pairwise(window.kept()))
