"""Workers that share a limit through the store, in virtual time: no minute ever holds more than the limit."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from virtual_time import run

from textmill.errors import DependencyDown
from textmill.store import MemoryStore, ObjectStore, S3Store
from textmill_synth.llm import CallFailed
from textmill_synth.llm import claims as claims_module
from textmill_synth.llm.claims import SKEW_S, Claim, ClaimLog, Quota
from textmill_synth.llm.limits import RateLimits

INF = float("inf")


@dataclass
class Traffic:
    """What the endpoint sees: when each request began (virtual seconds) and its tokens."""

    began: list[tuple[float, int]] = field(default_factory=list)

    def most_in_a_minute(self) -> tuple[int, int]:
        """The most requests, and the most tokens, of all windows [t, t + 60): the worst begin with a request."""
        most_requests = most_tokens = tokens = first = 0
        for last, (time, more) in enumerate(self.began):
            tokens += more
            while self.began[first][0] <= time - 60:
                tokens -= self.began[first][1]
                first += 1
            most_requests, most_tokens = max(most_requests, last - first + 1), max(most_tokens, tokens)
        return most_requests, most_tokens


def limits(store: ObjectStore, per_minute: Quota, name: str = "a", skew_s: float = 0.0) -> RateLimits:
    loop = asyncio.get_running_loop()
    return RateLimits(store, "http://llm/v1", per_minute, name, lambda: 1e9 + loop.time() + skew_s)


async def ask(limit: RateLimits, traffic: Traffic, tokens: int) -> None:
    await limit.acquire(tokens)
    traffic.began.append((asyncio.get_running_loop().time(), tokens))


async def random_worker(
    limit: RateLimits, traffic: Traffic, chance: random.Random, per_s: float, sizes: Sequence[int], until: float
) -> None:
    """Arrivals at random, some given up while they wait; a worker that is killed leaves its claims behind."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    while loop.time() < until:
        burst = chance.choice((1, 1, 1, 5, 40))
        tasks += [asyncio.create_task(ask(limit, traffic, chance.choice(sizes))) for _ in range(burst)]
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
        await asyncio.sleep(chance.expovariate(per_s / 9))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await limit.close()


def share_used(seed: int) -> float:
    """Three workers whose clocks differ, one of which is killed and replaced, want three times what is allowed.

    Returns what the fullest minute held, as a share of the limit.
    """
    chance, traffic, store = random.Random(seed), Traffic(), MemoryStore()
    requests, tokens = chance.choice(((60, INF), (600, 40_000), (INF, 30_000)))
    skews = (-SKEW_S / 2, 0.0, SKEW_S / 2, SKEW_S / 2)

    async def work() -> None:
        async def one(number: int, begin: float, until: float) -> None:
            await asyncio.sleep(begin)
            limit = limits(store, Quota(requests, tokens), f"w{number}", skews[number])
            sizes = [chance.randrange(20, 400) for _ in range(5)]
            await random_worker(limit, traffic, chance, 3.0, sizes, until)

        await asyncio.gather(one(0, 0, 400), one(1, 7, 150), one(2, 20, 400), one(3, 155, 400))

    run(work(), seed, thread_s=0.3)
    most_requests, most_tokens = traffic.most_in_a_minute()
    return max(most_requests / requests, most_tokens / tokens)


@pytest.mark.parametrize("seed", range(12))
def test_no_minute_holds_more_than_the_limit(seed: int) -> None:
    assert 0.8 <= share_used(seed) <= 1.0


def test_a_window_that_is_too_short_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "WINDOW_S", 55.0)
    assert max(share_used(seed) for seed in range(4)) > 1.0


def test_three_workers_use_nearly_the_whole_limit_and_all_get_their_part() -> None:
    store, traffics = MemoryStore(), [Traffic() for _ in range(3)]

    async def work() -> None:
        workers = [limits(store, Quota(600, INF), f"w{n}") for n in range(3)]
        tasks = [
            asyncio.create_task(ask(worker, traffic, 1))
            for worker, traffic in zip(workers, traffics, strict=True)
            for _ in range(5000)
        ]
        await asyncio.sleep(640)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:
            await worker.close()

    run(work())
    counts = [len(traffic.began) for traffic in traffics]
    assert sum(counts) >= 0.9 * 600 * 640 / 60
    assert min(counts) >= 0.15 * sum(counts)


@pytest.mark.parametrize("skew_s", [0.0, SKEW_S])
def test_a_killed_worker_takes_its_claim_with_it_for_a_minute(skew_s: float) -> None:
    """It may have spent it up to two seconds later, however fast the clock of the next worker goes."""
    store, traffic = MemoryStore(), Traffic()

    async def work() -> float:
        dead = ClaimLog(store, "http://llm/v1")
        dead.append(Claim(worker="dead", at=1e9, requests=60, tokens=0), 0.0)
        limit = limits(store, Quota(60, INF), skew_s=skew_s)
        await ask(limit, traffic, 1)
        await limit.close()
        return traffic.began[0][0]

    assert 62 <= run(work()) <= 70


def test_what_is_not_spent_lapses() -> None:
    async def work() -> int:
        limit, traffic = limits(MemoryStore(), Quota(100, INF)), Traffic()
        await asyncio.gather(*(ask(limit, traffic, 1) for _ in range(10)))
        await asyncio.gather(*(ask(limit, traffic, 1) for _ in range(10)))
        assert limit.try_acquire(1), "as many again were claimed ahead"
        await asyncio.sleep(2)
        taken = limit.try_acquire(1)
        await limit.close()
        return taken

    assert not run(work())


def test_a_call_larger_than_the_limit_says_what_to_do() -> None:
    async def work() -> None:
        await limits(MemoryStore(), Quota(INF, 1000)).acquire(1001)

    with pytest.raises(CallFailed, match="TEXTMILL_SYNTH_TOKENS_PER_MINUTE allows 1000") as caught:
        run(work())
    assert caught.value.kind == "llm_over_token_limit"


class BrokenStore(MemoryStore):
    def create(self, key: str, data: bytes) -> bool:
        raise DependencyDown("planted")


def test_everybody_who_waits_hears_that_the_store_is_gone() -> None:
    async def work() -> list[object]:
        limit = limits(BrokenStore(), Quota(10, INF))
        return await asyncio.gather(*(limit.acquire(1) for _ in range(5)), return_exceptions=True)

    assert [type(error) for error in run(work())] == [DependencyDown] * 5


def test_old_claims_are_swept_but_never_the_last() -> None:
    store = MemoryStore()

    async def work() -> list[str]:
        limit, traffic = limits(store, Quota(1000, INF)), Traffic()
        for _ in range(50):
            await ask(limit, traffic, 1)
            await asyncio.sleep(10)
        await limit.close()
        return [info.key for info in store.list("limits/")]

    keys = run(work())
    assert len(keys) < 20
    assert keys[-1].endswith("50.json")


def test_a_number_is_not_used_again_while_somebody_may_not_have_known_it() -> None:
    store = MemoryStore()
    slow, other = ClaimLog(store, "u"), ClaimLog(store, "u")
    slow.read(0.0)
    other.append(Claim(worker="other", at=0.0, requests=1, tokens=0), 0.0)
    other.append(Claim(worker="other", at=300.0, requests=1, tokens=0), 30.0)
    other.sweep(300.0, 30.0)
    assert not slow.append(Claim(worker="slow", at=0.0, requests=1, tokens=0), 31.0)
    other.sweep(300.0, 61.0)
    assert [info.key[-6:] for info in store.list("limits/")] == ["2.json"]


@pytest.mark.slow
def test_two_workers_share_a_limit_on_a_real_store(s3_store: S3Store) -> None:
    async def work() -> list[int]:
        limits = [RateLimits(s3_store, "http://llm/v1", Quota(30, INF), name) for name in ("a", "b")]
        calls = [[asyncio.create_task(limit.acquire(1)) for _ in range(25)] for limit in limits]
        while sum(call.done() for both in calls for call in both) < 30:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        counts = [sum(call.done() for call in mine) for mine in calls]
        for call in (call for mine in calls for call in mine):
            call.cancel()
        for limit in limits:
            await limit.close()
        return counts

    counts = asyncio.run(work())
    assert sum(counts) == 30
    assert min(counts) > 0
