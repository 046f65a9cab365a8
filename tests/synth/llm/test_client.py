"""Retries, failover, hedging and who is to blame, in virtual time."""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from virtual_endpoint import ANSWER, DOWN, RATE_LIMITED, REQUEST, SERVER_ERROR, Reply, VirtualEndpoint
from virtual_time import run

from textmill.errors import DependencyDown, JobFailed
from textmill.store import MemoryStore
from textmill_synth.llm import CallFailed, ChatClient, ChatRequest, Completion, Concurrency, Fault, RetryPolicy, Route
from textmill_synth.llm.breaker import TRIP_AFTER
from textmill_synth.llm.claims import Quota
from textmill_synth.llm.concurrency import FIRST_LIMIT
from textmill_synth.llm.limits import RateLimits

Answers = list[Completion | BaseException]
PROBE_TOKENS = 1


def client(
    *endpoints: VirtualEndpoint, deadline_s: float = 30.0, hedge_budget: float = 0.0, **more: object
) -> ChatClient:
    routes = [Route(endpoint, Concurrency(64, limit=64)) for endpoint in endpoints]
    return ChatClient(routes, "m", deadline_s, RetryPolicy(max_tries=3), hedge_budget=hedge_budget, **more)  # type: ignore[arg-type]


async def ask(asked: ChatClient, requests: Sequence[ChatRequest]) -> Answers:
    try:
        return await asyncio.gather(*(asked.complete(request) for request in requests), return_exceptions=True)
    finally:
        await asked.close()


def many(count: int) -> list[ChatRequest]:
    return [replace(REQUEST, sample=n) for n in range(count)]


def is_probe(request: ChatRequest) -> bool:
    return request.max_tokens == PROBE_TOKENS


def failing(fault: Fault, bad: Callable[[ChatRequest], bool], after_s: float = 0.1) -> Callable[..., Reply]:
    return lambda request, at_once: (fault, after_s) if bad(request) else (ANSWER, 1.0)


def test_faults_are_tried_again_and_then_given_up_alone() -> None:
    endpoint = VirtualEndpoint(failing(SERVER_ERROR, lambda request: request.sample == 3))

    async def work() -> Answers:
        return await ask(client(endpoint), many(10))

    answers = run(work())
    assert [type(answer) for answer in answers] == [Completion] * 3 + [CallFailed] + [Completion] * 6
    assert len(endpoint.began) == 9 + 3


@pytest.mark.parametrize("fault", [DOWN, SERVER_ERROR, RATE_LIMITED])
def test_a_prompt_that_alone_always_fails_is_a_dead_letter_and_pauses_nothing(fault: Fault) -> None:
    """It is the only one left, so nothing else shows that the endpoint is well: a probe does."""
    endpoint = VirtualEndpoint(failing(fault, lambda request: not is_probe(request)))
    asked: list[ChatClient] = []

    async def work() -> Answers:
        asked.append(client(endpoint))
        return await ask(asked[0], many(1))

    [error] = run(work())
    assert isinstance(error, CallFailed)
    assert error.kind == fault.kind
    assert asked[0].stats.probes == 1


@pytest.mark.parametrize(
    "fault",
    [DOWN, SERVER_ERROR, RATE_LIMITED, Fault("llm_timeout", "-"), Fault("llm_connection", "-", endpoint_down=True)],
)
def test_an_endpoint_that_serves_nobody_pauses_the_job(fault: Fault) -> None:
    endpoint = VirtualEndpoint(failing(fault, lambda request: True))

    async def work() -> Answers:
        return await ask(client(endpoint), many(200))

    assert {type(answer) for answer in run(work())} == {DependencyDown}


def test_an_open_breaker_burns_no_tries_and_lets_one_probe_through() -> None:
    """Down for twenty seconds: what was under way fails, then one probe at a time is sent until one succeeds."""

    def reply(request: ChatRequest, at_once: int) -> Reply:
        return (DOWN, 0.1) if 5 < asyncio.get_running_loop().time() < 8 else (ANSWER, 1.0)

    endpoint = VirtualEndpoint(reply)
    asked: list[ChatClient] = []

    async def work() -> Answers:
        asked.append(client(endpoint))
        return await ask(asked[0], many(1000))

    assert {type(answer) for answer in run(work())} == {Completion}
    assert 1 <= asked[0].stats.probes <= 4
    failed = sum(5 < time < 8 for time in endpoint.began)
    assert TRIP_AFTER <= failed <= 2 * 64 + 4


def test_a_long_retry_after_gives_the_job_back_and_a_short_one_of_most_holds_all() -> None:
    def reply(request: ChatRequest, at_once: int) -> Reply:
        closed = asyncio.get_running_loop().time() < min(wait_s, 20.0)
        return (replace(RATE_LIMITED, retry_after_s=wait_s), 0.0) if closed else (ANSWER, 1.0)

    async def work() -> Answers:
        return await ask(client(endpoint), many(100))

    endpoint, wait_s = VirtualEndpoint(reply), 20.0
    assert {type(answer) for answer in run(work())} == {Completion}
    assert len([time for time in endpoint.began if time < 20]) <= 2 * FIRST_LIMIT
    endpoint, wait_s = VirtualEndpoint(reply), 3600.0
    errors = [answer for answer in run(work()) if isinstance(answer, BaseException)]
    assert errors
    assert {(type(error), error.retry_after_s) for error in errors} == {(DependencyDown, 3600.0)}  # type: ignore[attr-defined]


def test_some_that_are_told_to_wait_hold_nobody_else() -> None:
    """Each ends at once, so that of the first to end all are 429s."""

    def reply(request: ChatRequest, at_once: int) -> Reply:
        turned_away = len(endpoint.began) <= FIRST_LIMIT // 4
        return (replace(RATE_LIMITED, retry_after_s=20.0), 0.0) if turned_away else (ANSWER, 1.0)

    async def work() -> Answers:
        return await ask(client(endpoint), many(100))

    endpoint = VirtualEndpoint(reply)
    assert {type(answer) for answer in run(work())} == {Completion}
    assert len([time for time in endpoint.began if time < 20]) == 100, "all, those that are turned away included"


def test_the_second_endpoint_answers_while_the_first_is_down() -> None:
    def first(request: ChatRequest, at_once: int) -> Reply:
        return (DOWN, 0.1) if asyncio.get_running_loop().time() < 100 else (ANSWER, 1.0)

    other = replace(ANSWER, model="n", endpoint="second")
    endpoints = VirtualEndpoint(first), VirtualEndpoint(lambda request, at_once: (other, 1.0), url="second")

    async def work() -> tuple[Answers, Answers, int]:
        asked = client(*endpoints)
        early = await asyncio.gather(*(asked.complete(r) for r in many(200)), return_exceptions=True)
        await asyncio.sleep(140)
        late = await ask(asked, many(10))
        return early, late, asked.stats.answered_by_fallback

    early, late, by_fallback = run(work())
    assert {(a.model, a.endpoint) for a in early if isinstance(a, Completion)} == {("n", "second")}
    assert len(early) == by_fallback == 200
    assert {a.endpoint for a in late if isinstance(a, Completion)} == {"virtual"}
    assert len(late) == 10


def test_where_both_are_down_the_job_pauses() -> None:
    endpoints = [VirtualEndpoint(failing(DOWN, lambda request: True)) for _ in range(2)]

    async def work() -> Answers:
        return await ask(client(*endpoints), many(50))

    assert {type(answer) for answer in run(work())} == {DependencyDown}


def test_a_prompt_that_fails_at_both_is_given_up() -> None:
    endpoints = [VirtualEndpoint(failing(SERVER_ERROR, lambda request: not is_probe(request))) for _ in range(2)]

    async def work() -> Answers:
        return await ask(client(*endpoints), many(1))

    assert [type(answer) for answer in run(work())] == [CallFailed]
    tries = [len(endpoint.began) for endpoint in endpoints]
    assert sum(tries) == 3 + 3 + 1, "each endpoint's tries, and a probe"
    assert min(tries) >= 2


def test_a_probe_that_finds_the_key_gone_ends_the_job() -> None:
    def reply(request: ChatRequest, at_once: int) -> Reply:
        if is_probe(request):
            raise JobFailed("401")
        return DOWN, 0.1

    async def work() -> Answers:
        return await ask(client(VirtualEndpoint(reply)), many(20))

    assert {type(answer) for answer in run(work())} == {JobFailed}


def slow_tail(seed: int) -> Callable[..., Reply]:
    chance = random.Random(seed)
    return lambda request, at_once: (ANSWER, 20.0 if chance.random() < 0.03 else chance.uniform(0.9, 1.1))


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1])
def test_hedges_stay_within_their_budget_and_shorten_the_tail(budget: float) -> None:
    endpoint = VirtualEndpoint(slow_tail(1))
    asked: list[ChatClient] = []

    async def work() -> int:
        asked.append(client(endpoint, hedge_budget=budget))
        loop, slow = asyncio.get_running_loop(), 0

        async def caller(requests: Sequence[ChatRequest]) -> None:
            nonlocal slow
            for request in requests:
                began = loop.time()
                await asked[0].complete(request)
                slow += loop.time() - began > 5

        await asyncio.gather(*(caller(many(100)) for _ in range(40)))
        await asked[0].close()
        assert asked[0]._lanes[0].route.concurrency.held == 0
        return slow

    slow, stats = run(work()), asked[0].stats
    assert stats.tries == len(endpoint.began) == 4000 + stats.hedged
    assert stats.hedged <= budget * 4000
    if budget == 0.1:
        assert stats.hedges_won >= 0.8 * 0.03 * 4000
        assert slow <= 20
    else:
        assert slow >= 0.01 * 4000


@pytest.mark.parametrize("seed", range(4))
def test_no_permit_leaks_after_a_thousand_faults_and_cancellations(seed: int) -> None:
    chance, store = random.Random(seed), MemoryStore()
    kinds = [DOWN, SERVER_ERROR, RATE_LIMITED, replace(RATE_LIMITED, retry_after_s=0.5), Fault("llm_bad_response", "-")]

    def reply(request: ChatRequest, at_once: int) -> Reply:
        x = chance.random()
        outcome = ANSWER if x < 0.4 else chance.choice(kinds)
        return outcome, 1e9 if x > 0.95 else chance.uniform(0, 2)

    async def work() -> tuple[int, int, int]:
        endpoint = VirtualEndpoint(reply)
        limits = RateLimits(store, "u", Quota(3000, math.inf), "w", asyncio.get_running_loop().time)
        concurrency = Concurrency(32)
        route = Route(endpoint, concurrency, limits)
        asked = ChatClient([route], "m", 10.0, RetryPolicy(max_tries=3), hedge_budget=0.2)
        tasks = []
        for request in many(1500):
            tasks.append(asyncio.create_task(asked.complete(request)))
            await asyncio.sleep(chance.expovariate(5))
            if chance.random() < 0.3:
                chance.choice(tasks[-40:]).cancel()
        with suppress(DependencyDown):
            await asyncio.gather(*tasks, return_exceptions=True)
        await asked.close()
        assert endpoint.most_at_once <= 32
        return concurrency.held, concurrency.paced, len(endpoint.began)

    held, paced, tries = run(work(), seed)
    assert (held, paced) == (0, 0)
    assert tries > 1500


def test_the_deadline_counts_from_admission_and_each_try_has_its_own() -> None:
    """One at a time, ten wait: the last is admitted after nine seconds, and still has its two."""
    endpoint = VirtualEndpoint(lambda request, at_once: (ANSWER, 1.0))

    async def work() -> Answers:
        route = Route(endpoint, Concurrency(1))
        return await ask(ChatClient([route], "m", 2.0, RetryPolicy()), many(10))

    assert run(work()) == [ANSWER] * 10
    assert endpoint.began == [float(n) for n in range(10)]


@pytest.mark.parametrize("seed", range(3))
def test_faults_at_random_do_not_make_the_last_rows_wait(seed: int) -> None:
    """A quarter never comes, 20 % get a 429, 10 % a 500, 10 % garbage: 300 rows from a cold start."""
    chance, advised = random.Random(seed), replace(RATE_LIMITED, retry_after_s=1.0)
    replies: list[Reply] = [
        (RATE_LIMITED, 0.005), (advised, 0.005), (SERVER_ERROR, 0.5), (Fault("llm_bad_response", "-"), 0.5),
        (ANSWER, 1e9), (ANSWER, 0.5),
    ]  # fmt: skip
    endpoint = VirtualEndpoint(lambda request, at_once: chance.choices(replies, (10, 10, 10, 10, 25, 35))[0])

    async def work() -> tuple[Answers, float]:
        asked = ChatClient([Route(endpoint, Concurrency(1000))], "m", 3.0, RetryPolicy(max_tries=30))
        return await ask(asked, many(300)), asyncio.get_running_loop().time()

    answers, took_s = run(work(), seed)
    assert answers == [ANSWER] * 300
    assert took_s < 50
