"""How the limit learns, in virtual time: growth, one cut a burst, faults that have nothing to do with load, leaks."""

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from virtual_time import run

from textmill_synth.llm.concurrency import FIRST_LIMIT, Concurrency, Outcome


async def drive(
    concurrency: Concurrency, tries: int, reply: Callable[[int], tuple[Outcome, float]], callers: int = 1000
) -> int:
    """So many tries, one after the other by each caller. ``reply`` is told how many are under way. Returns the ok."""
    left, under_way, ok = tries, 0, 0

    async def caller() -> None:
        nonlocal left, under_way, ok
        while left > 0:
            left -= 1
            permit = await concurrency.acquire()
            concurrency.start(permit)
            under_way += 1
            outcome, after_s = reply(under_way)
            await asyncio.sleep(after_s)
            under_way -= 1
            ok += outcome == "ok"
            concurrency.release(permit, outcome)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return ok


def test_it_doubles_in_a_round_and_stops_at_the_ceiling() -> None:
    async def work() -> list[float]:
        concurrency, limits = Concurrency(256), []
        task = asyncio.create_task(drive(concurrency, 5000, lambda n: ("ok", 1.0)))
        await asyncio.sleep(0.5)
        for _ in range(6):
            await asyncio.sleep(1.0)
            limits.append(concurrency.limit)
        await task
        return limits

    assert run(work()) == [128, 256, 256, 256, 256, 256]


def test_it_does_not_grow_where_it_is_not_used() -> None:
    async def work() -> Concurrency:
        concurrency = Concurrency(256)
        await drive(concurrency, 500, lambda n: ("ok", 1.0), callers=10)
        concurrency.paced = 200  # as if all but a few waited for the rate limit
        await drive(concurrency, 500, lambda n: ("ok", 1.0))
        return concurrency

    assert run(work()).limit == FIRST_LIMIT


@pytest.mark.parametrize("faults", [1, 2, 5, 100])
def test_a_burst_is_one_cut_and_takes_at_most_half(faults: int) -> None:
    async def work() -> Concurrency:
        concurrency = Concurrency(100, limit=100, threshold=100)
        permits = [await concurrency.acquire() for _ in range(100)]
        for permit in permits:
            concurrency.start(permit)
        for number, permit in enumerate(permits):
            concurrency.release(permit, "fault" if number < faults else "neutral")
        return concurrency

    concurrency = run(work())
    assert concurrency.cuts == 1
    assert concurrency.limit == max(50, 100 - 2 * faults)


def test_late_faults_of_calls_from_before_a_cut_do_not_cut_again() -> None:
    async def work() -> tuple[float, float, int]:
        concurrency = Concurrency(64, limit=64, threshold=64)
        old = [await concurrency.acquire() for _ in range(64)]
        for permit in old:
            concurrency.start(permit)
        for permit in old[:48]:
            concurrency.release(permit, "fault")
        cut = concurrency.limit
        await drive(concurrency, 200, lambda n: ("ok", 0.001), callers=8)
        before = concurrency.limit
        for permit in old[48:]:
            concurrency.release(permit, "fault")
        return cut, concurrency.limit - before, concurrency.cuts

    assert run(work()) == (32, 0, 1)


def test_the_floor_is_one() -> None:
    async def work() -> Concurrency:
        concurrency = Concurrency(64)
        await drive(concurrency, 3000, lambda n: ("fault", 0.1))
        return concurrency

    assert run(work()).limit == 1


@pytest.mark.parametrize("capacity", [20, 100, 400])
def test_it_finds_what_the_endpoint_bears_and_stays_near(capacity: int) -> None:
    """An endpoint that turns away at once whatever goes past its capacity."""
    seen: list[float] = []

    async def work() -> None:
        concurrency = Concurrency(1000)

        def reply(under_way: int) -> tuple[Outcome, float]:
            seen.append(concurrency.limit)
            return ("ok", 1.0) if under_way <= capacity else ("fault", 0.01)

        await drive(concurrency, 30 * capacity, reply)

    run(work())
    settled = seen[len(seen) // 2 :]
    assert max(settled) <= capacity * 1.5
    assert sum(settled) / len(settled) >= capacity * 0.5


def test_faults_that_load_has_no_part_in_do_not_keep_it_small() -> None:
    """A fifth times out, three tenths are turned away at once, whatever the load."""
    chance = random.Random(7)

    async def work() -> tuple[Concurrency, float]:
        concurrency = Concurrency(200)

        def reply(under_way: int) -> tuple[Outcome, float]:
            x = chance.random()
            return ("fault", 10.0) if x < 0.2 else ("fault", 0.01) if x < 0.5 else ("ok", 1.0)

        await drive(concurrency, 20_000, reply)
        return concurrency, asyncio.get_running_loop().time()

    concurrency, took_s = run(work())
    ideal_s = 20_000 * (0.2 * 10 + 0.3 * 0.01 + 0.5) / 200
    assert took_s < ideal_s * 1.25
    assert 0.3 < concurrency.background < 0.7


def test_it_stops_growing_where_only_latency_grows() -> None:
    """Fifty calls are served at a time, the others queue: answers a second never rise past fifty."""

    async def work() -> list[float]:
        concurrency, limits = Concurrency(1000), []

        def reply(under_way: int) -> tuple[Outcome, float]:
            limits.append(concurrency.limit)
            return ("ok", max(1.0, under_way / 50))

        await drive(concurrency, 10_000, reply)
        return limits

    limits = run(work())
    settled = limits[len(limits) // 2 :]
    assert max(settled) <= 200
    assert min(settled) >= 40


def test_a_hold_never_gets_shorter() -> None:
    async def work() -> float:
        concurrency = Concurrency(4)
        concurrency.hold(5)
        concurrency.hold(1)
        return concurrency.held_for_s()

    assert run(work()) == 5


def test_after_an_outage_it_starts_slowly_up_to_where_it_was() -> None:
    async def work() -> Concurrency:
        concurrency = Concurrency(1000, limit=500, threshold=math.inf)
        concurrency.slow_start()
        return concurrency

    concurrency = run(work())
    assert (concurrency.limit, concurrency.threshold) == (FIRST_LIMIT, 500)
    assert concurrency.learnt() == {"limit": 500, "threshold": 500}


def test_a_caller_that_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    async def work() -> bool:
        concurrency = Concurrency(1)
        permit = await concurrency.acquire()
        first, second = (asyncio.create_task(concurrency.acquire()) for _ in range(2))
        await asyncio.sleep(1)
        concurrency.release(permit, "neutral")
        first.cancel()
        await asyncio.sleep(1)
        return second.done()

    assert run(work())


@pytest.mark.parametrize("seed", range(5))
def test_no_permit_leaks_after_a_thousand_faults_and_cancellations(seed: int) -> None:
    chance = random.Random(seed)

    async def call(concurrency: Concurrency) -> None:
        permit = await concurrency.acquire()
        outcome: Outcome = "neutral"
        try:
            await asyncio.sleep(chance.uniform(0, 0.2))
            concurrency.start(permit)
            await asyncio.sleep(chance.uniform(0, 2))
            outcome = chance.choice(("ok", "fault", "fault"))
        finally:
            concurrency.release(permit, outcome)

    async def work() -> Concurrency:
        concurrency = Concurrency(50)
        tasks = []
        for _ in range(4000):
            tasks.append(asyncio.create_task(call(concurrency)))
            await asyncio.sleep(chance.expovariate(30))
            if chance.random() < 0.3:
                chance.choice(tasks[-60:]).cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert concurrency.held == 0
        permits = [await concurrency.acquire() for _ in range(int(concurrency.limit))]
        assert concurrency.try_acquire() is None
        for permit in permits:
            concurrency.release(permit, "neutral")
        return concurrency

    assert run(work(), seed).held == 0
