"""Admission in virtual time: what reaches the engine, who waits how long, what is left after faults."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from tests.synth.virtual_time import run

from textmill.contracts.keys import KeyLimits
from textmill_inference.gateway.admission import Admission, Room
from textmill_inference.gateway.keys import Caller, Scopes
from textmill_inference.gateway.openai_errors import OpenAIError

LIMITLESS = KeyLimits()


def now() -> float:
    return asyncio.get_running_loop().time()


def caller(name: str, weight: float = 1.0, limits: KeyLimits = LIMITLESS, models: tuple[str, ...] = ("*",)) -> Caller:
    return Caller(f"key_{name}", name, name, Scopes.of(frozenset({"inference"}), models), limits, weight)


def admission(in_flight: int = 2, queue: int = 4, wait_s: float = 10.0) -> Admission:
    return Admission(Room(in_flight, queue, wait_s), clock=now)


def refusal(error: OpenAIError) -> tuple[int, str | None, int | None]:
    return error.status, error.code, error.retry_after_s


@dataclass
class Engine:
    """Serves all that is sent to it, ``slots`` at full speed; what is beyond that slows all down in proportion."""

    gate: Admission
    slots: int
    takes_s: float = 1.0
    under_way: int = 0
    most: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def ask(self, who: Caller, tokens: int = 100, patience_s: float | None = None) -> None:
        came = now()
        try:
            permit = self.gate.try_enter(who, "m", tokens) or await self.gate.enter(who, "m", tokens)
        except OpenAIError as error:
            self.outcomes[who.name, error.code or ""] += 1
            return
        self.waits.setdefault(who.name, []).append(now() - came)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.takes_s * max(1.0, self.under_way / self.slots))
        self.under_way -= 1
        permit.release(tokens)
        late = patience_s is not None and now() - came > patience_s
        self.outcomes[who.name, "late" if late else "served"] += 1


@asynccontextmanager
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as tasks:
        yield tasks


def test_at_twice_the_load_goodput_stays_flat() -> None:
    """10 places of a second each: 10 a second. Answers later than 5 s are of no use to those who asked."""

    async def goodput(per_s: float, gate: Admission) -> tuple[float, int, Counter[tuple[str, str]]]:
        engine = Engine(gate, slots=10)
        async with group() as tasks:
            for _ in range(int(per_s * 200)):
                tasks.create_task(engine.ask(caller("a"), patience_s=5.0))
                await asyncio.sleep(1 / per_s)
        return engine.outcomes["a", "served"] / 200, engine.most, engine.outcomes

    measured = {load: run(goodput(load, Admission(Room(10, 30, 4.0), now))) for load in (8, 10, 20, 40)}
    assert measured[8][0] == 8
    for load in (10, 20, 40):
        per_s, most, outcomes = measured[load]
        assert per_s >= 9.8, outcomes
        assert most == 10
        assert sum(outcomes.values()) == load * 200
    # Without a bound the same load drowns the engine: the test can tell the difference.
    assert run(goodput(20, Admission(Room(10**6, 0, 1.0), now)))[0] < 1


@pytest.mark.parametrize("queue", [8, 64, 1000])
def test_a_key_with_a_hundred_times_the_demand_cannot_hold_up_a_modest_one(queue: int) -> None:
    """4 places of a second each. The modest key asks once a second, the aggressive one 100 times.

    A modest request waits at most until a place is free, and then for one of the aggressive key's: 2 s.
    """

    async def work() -> Engine:
        engine = Engine(Admission(Room(4, queue, 30.0), now), slots=4)

        async def keep_asking(who: Caller, per_s: float) -> None:
            async with group() as tasks:
                for _ in range(int(per_s * 60)):
                    tasks.create_task(engine.ask(who))
                    await asyncio.sleep(1 / per_s)

        await asyncio.gather(keep_asking(caller("aggressive"), 100), keep_asking(caller("modest"), 1))
        return engine

    engine = run(work())
    assert engine.outcomes["modest", "served"] == 60
    assert max(engine.waits["modest"]) <= 2.0
    assert engine.outcomes["aggressive", "served"] >= 3 * 60 - 4


def test_long_requests_of_one_key_do_not_starve_short_ones_of_another() -> None:
    async def work() -> Engine:
        engine = Engine(Admission(Room(2, 1000, 10_000.0), now), slots=2)
        async with group() as tasks:
            for _ in range(300):
                tasks.create_task(engine.ask(caller("long"), 4000))
                tasks.create_task(engine.ask(caller("short"), 100))
        return engine

    waits = run(work()).waits
    # By tokens 40 short ones go for each long one, so the 300 are through after some 154 s, not after 300.
    assert max(waits["short"]) <= 160


def test_the_expired_never_reach_the_engine() -> None:
    async def work() -> tuple[Counter[tuple[str, str]], Engine]:
        engine = Engine(admission(in_flight=1, queue=100, wait_s=5.0), slots=1, takes_s=2.0)
        async with group() as tasks:
            for _ in range(10):
                tasks.create_task(engine.ask(caller("a")))
        return engine.outcomes, engine

    outcomes, engine = run(work())
    # At 0, 2 and 4 s; the next place comes free at 6 s, when nobody waits any more.
    assert outcomes == {("a", "served"): 3, ("a", "queue_timeout"): 7}
    assert engine.gate.under_way() == {"m": 0}
    assert engine.gate.waiting() == {"m": 0}


def test_a_deadline_that_passed_unnoticed_is_noticed_at_the_gate() -> None:
    """The loop was busy: the timer hasn't run, but the place is given to one who still has time."""

    async def work() -> tuple[int, str | None, int | None]:
        clock = [now()]
        gate = Admission(Room(1, 10, 5.0), clock=lambda: clock[0])
        first = gate.try_enter(caller("a"), "m", 1)
        assert first is not None
        late = asyncio.create_task(gate.enter(caller("a"), "m", 1))
        await asyncio.sleep(0)
        clock[0] += 6
        in_time = asyncio.create_task(gate.enter(caller("a"), "m", 1))
        await asyncio.sleep(0)
        first.release(1)
        (await in_time).release(1)
        with pytest.raises(OpenAIError) as caught:
            await late
        return refusal(caught.value)

    assert run(work())[:2] == (429, "queue_timeout")


def test_cancelled_waiters_leave_nothing_behind() -> None:
    async def work() -> Admission:
        gate = admission(in_flight=1, queue=10)
        limited = caller("a", limits=KeyLimits(concurrent=4, requests_per_minute=4, tokens_per_minute=100))
        held = gate.try_enter(limited, "m", 10)
        assert held is not None
        waiting = [asyncio.create_task(gate.enter(limited, "m", 10)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert gate.waiting() == {"m": 2}
        assert {use.quota: use.used for use in gate.accounts["key_a"].uses()}["concurrent"] == 3
        held.release(10)  # grants the second, which is cancelled before it could look
        waiting[1].cancel()
        permit = await waiting[2]
        assert gate.under_way() == {"m": 1}
        permit.release(10)
        for task in waiting[:2]:
            with suppress(asyncio.CancelledError):
                await task
        return gate

    gate = run(work())
    assert (gate.under_way(), gate.waiting()) == ({"m": 0}, {"m": 0})

    async def used() -> dict[str, int]:
        return {use.quota: use.used for use in gate.accounts["key_a"].uses()}

    gate.accounts["key_a"].clock = lambda: 0.0
    assert run(used()) == {"concurrent": 0, "requests_per_minute": 2, "tokens_per_minute": 20}


def test_a_place_that_comes_free_as_its_waiter_leaves_goes_to_the_next() -> None:
    async def work() -> Admission:
        gate = admission(in_flight=1)
        held = gate.try_enter(caller("a"), "m", 1)
        assert held is not None
        leaving, next_one = (asyncio.create_task(gate.enter(caller("a"), "m", 1)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        held.release(1)  # before the cancelled task has run
        (await next_one).release(1)
        assert leaving.cancelled()
        return gate

    gate = run(work())
    assert (gate.under_way(), gate.waiting()) == ({"m": 0}, {"m": 0})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_permit_leaks_after_a_thousand_random_faults(seed: int) -> None:
    """Cancelled before, while and after waiting, released twice, never answered, given back, refused."""
    chance = random.Random(seed)

    async def one(gate: Admission, who: Caller) -> None:
        await asyncio.sleep(chance.uniform(0, 40))
        tokens = chance.randint(1, 60)
        permit = gate.try_enter(who, chance.choice("mn"), tokens)
        permit = permit or await gate.enter(who, chance.choice("mn"), tokens)
        try:
            await asyncio.sleep(chance.expovariate(2))
        finally:
            how = chance.choice(["tokens", "unknown", "back", "twice"])
            if how == "back":
                permit.give_back()
            else:
                permit.release(None if how == "unknown" else chance.randint(0, 2 * tokens))
            if how == "twice":
                permit.release(5)
                permit.give_back()

    async def work() -> Admission:
        gate = admission(in_flight=chance.randint(1, 8), queue=chance.randint(0, 40), wait_s=chance.uniform(0.1, 20))
        limits = KeyLimits(requests_per_minute=400, tokens_per_minute=8000, tokens_per_day=10**6, concurrent=40)
        who = [caller("a"), caller("b", 3, limits), caller("c", 0.5, KeyLimits(concurrent=3))]
        tasks = [asyncio.create_task(one(gate, chance.choice(who))) for _ in range(1000)]
        for task in tasks:
            if chance.random() < 0.4:
                asyncio.get_running_loop().call_later(chance.uniform(0, 60), task.cancel)
            if chance.random() < 0.05:
                gate_limit = (chance.randint(0, 20), chance.randint(0, 20))
                asyncio.get_running_loop().call_later(chance.uniform(0, 60), gate.observe, "m", *gate_limit)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(one) for one in found} <= {type(None), OpenAIError, asyncio.CancelledError}
        for model in ("m", "n"):
            permit = await gate.enter(caller("last"), model, 1)  # there is a place for one more
            permit.release(1)
        return gate

    gate = run(work())
    assert gate.under_way() == {"m": 0, "n": 0}
    assert gate.waiting() == {"m": 0, "n": 0}
    for account in gate.accounts.values():
        assert [meter.reserved for meter in account.meters if meter.quota != "requests_per_minute"] == [0] * (
            len(account.meters) - any(meter.quota == "requests_per_minute" for meter in account.meters)
        )
    waiting = REGISTRY.get_sample_value("textmill_gateway_queue_length", {"model": "m"})
    assert waiting == 0


def test_retry_after_is_when_the_queue_will_have_drained() -> None:
    """Two a second leave, eight wait: who comes now is told 5 s, the next ones later, so that they don't meet again."""

    async def work() -> list[int | None]:
        engine = Engine(admission(in_flight=2, queue=8, wait_s=100.0), slots=2)
        tasks = [asyncio.create_task(engine.ask(caller("a"))) for _ in range(10)]
        await asyncio.sleep(2.5)
        tasks += [asyncio.create_task(engine.ask(caller("a"))) for _ in range(4)]
        await asyncio.sleep(0)
        told = []
        for _ in range(4):
            with pytest.raises(OpenAIError) as caught:
                await engine.gate.enter(caller("a"), "m", 100)
            assert refusal(caught.value)[:2] == (429, "queue_full")
            told.append(caught.value.retry_after_s)
        await asyncio.gather(*tasks)
        return told

    assert run(work()) == [5, 5, 6, 6]


def test_a_quota_is_refused_at_once_with_its_own_retry_after() -> None:
    async def work() -> list[tuple[int, str | None, int | None]]:
        gate = admission(in_flight=100)
        who = caller("a", limits=KeyLimits(requests_per_minute=2, tokens_per_minute=1000))
        for _ in range(2):
            permit = gate.try_enter(who, "m", 10)
            assert permit is not None
            permit.release(10)
        found = []
        for tokens in (10, 1001):
            with pytest.raises(OpenAIError) as caught:
                gate.try_enter(who, "m", tokens)
            found.append(refusal(caught.value))
        return found

    limited, too_large = run(work())
    assert limited[:2] == (429, "rate_limit_exceeded")
    assert limited[2] in (60, 61)
    assert too_large == (400, "request_too_large", None)


def test_a_model_that_is_not_the_keys_is_refused_before_anything_is_counted() -> None:
    async def work() -> Admission:
        gate = admission()
        with pytest.raises(OpenAIError) as caught:
            gate.try_enter(caller("a", models=("law-*", "base")), "other", 1)
        assert refusal(caught.value)[:2] == (403, "model_not_allowed")
        for model in ("law-2", "base"):
            assert gate.try_enter(caller("a", models=("law-*", "base")), model, 1) is not None
        return gate

    assert run(work()).under_way() == {"law-2": 1, "base": 1}


def test_a_stream_that_does_not_tell_its_usage_counts_as_reserved() -> None:
    async def work() -> list[int]:
        gate = admission()
        who = caller("a", limits=KeyLimits(tokens_per_minute=1000))
        used = []
        for tokens in (None, 7, 0):
            permit = gate.try_enter(who, "m", 100)
            assert permit is not None
            permit.release(tokens)
            used += [use.used for use in gate.accounts["key_a"].uses()]
        return used

    assert run(work()) == [100, 107, 107]


def test_what_the_engine_says_of_its_queue_moves_the_limit() -> None:
    async def work() -> list[int]:
        gate = admission(in_flight=64, queue=1000, wait_s=1e6)
        permits = [gate.try_enter(caller("a"), "m", 1) for _ in range(64)]
        found = []
        for running, waiting in ((32, 32), (32, 4), (32, 0)):
            gate.observe("m", running, waiting)
            found.append(gate.limits()["m"])
            while gate.under_way()["m"] > gate.limits()["m"]:
                permit = permits.pop()
                assert permit is not None
                permit.release(1)
        for _ in range(20):
            while (permit := gate.try_enter(caller("a"), "m", 1)) is not None:
                permits.append(permit)
            gate.observe("m", 64, 0)
        return [*found, gate.limits()["m"]]

    assert run(work()) == [36, 36, 45, 64]


def test_a_higher_limit_lets_those_who_wait_in_at_once() -> None:
    async def work() -> int:
        gate = admission(in_flight=8, queue=10)
        held = [gate.try_enter(caller("a"), "m", 1) for _ in range(8)]
        gate.observe("m", 2, 6)
        for permit in held[:6]:
            assert permit is not None
            permit.release(1)
        waiting = asyncio.create_task(gate.enter(caller("a"), "m", 1))
        before = gate.limits()["m"]
        while gate.try_enter(caller("b"), "m", 1) is not None:
            pass
        await asyncio.sleep(0)
        gate.observe("m", 2, 0)
        await waiting
        return gate.limits()["m"] - before

    assert run(work()) == 4


def test_rejections_are_counted_by_reason_and_group() -> None:
    def count(reason: str, group: str) -> float:
        labels = {"model": "m", "group": group, "reason": reason}
        return REGISTRY.get_sample_value("textmill_gateway_rejected_total", labels) or 0.0

    async def work() -> None:
        engine = Engine(admission(in_flight=1, queue=2, wait_s=0.5), slots=1)
        async with group() as tasks:
            for _ in range(4):
                tasks.create_task(engine.ask(caller("counted")))
            await asyncio.sleep(0)
            tasks.create_task(engine.ask(caller("guest")))
        assert engine.outcomes == {
            ("counted", "served"): 1,
            ("counted", "queue_full"): 1,
            ("counted", "displaced"): 1,
            ("counted", "queue_timeout"): 1,
            ("guest", "queue_timeout"): 1,
        }

    run(work())
    assert [count(r, "counted") for r in ("queue_full", "displaced", "queue_timeout")] == [1, 1, 1]
    assert count("queue_timeout", "guest") == 1
    assert REGISTRY.get_sample_value("textmill_gateway_queue_seconds_count", {"model": "m", "group": "counted"}) == 1


def test_quota_use_is_told_by_group_as_the_highest_of_its_keys() -> None:
    async def work() -> None:
        gate = admission(in_flight=100)
        for name, tokens in (("a", 10), ("b", 40)):
            who = Caller(f"key_{name}", name, "team", limits=KeyLimits(tokens_per_minute=100))
            assert gate.try_enter(who, "m", tokens) is not None
        gate.publish()

    run(work())
    labels = {"group": "team", "quota": "tokens_per_minute"}
    assert REGISTRY.get_sample_value("textmill_gateway_quota_used_ratio", labels) == 0.4
