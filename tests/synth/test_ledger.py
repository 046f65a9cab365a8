"""Every call is paid once: across restarts, within a job, and after a kill at most one flush is lost."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from textmill.contracts.datasets import Message
from textmill.errors import DependencyDown, TextmillError
from textmill.store import MemoryStore
from textmill_synth import ledger as ledger_module
from textmill_synth.ledger import Ledger, shard_prefix
from textmill_synth.llm import CallFailed, ChatRequest, Completion

REQUEST = ChatRequest("m", (Message(role="user", content="hello"),), 0.0, 16)


@dataclass
class CountingLlm:
    requests: list[ChatRequest] = field(default_factory=list)
    delay_s: float = 0.0

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        if request.sample == 13:
            raise CallFailed("llm_timeout", "planted")
        return Completion(f"answer {request.sample}", "stop", 10, 2)


async def ask(ledger: Ledger, *samples: int, shard: str = "00") -> list[bool]:
    calls = await asyncio.gather(*(ledger.ask(replace(REQUEST, sample=n), shard, "p@1") for n in samples))
    assert [call.completion.text for call in calls] == [f"answer {n}" for n in samples]
    return [call.reused for call in calls]


def test_a_second_job_pays_nothing() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> tuple[int, int, int, int]:
        async with Ledger(store, llm) as ledger:
            await ask(ledger, 1, 2, 3)
        return ledger.calls, ledger.calls_reused, ledger.used.prompt_tokens, ledger.paid.prompt_tokens

    assert asyncio.run(job()) == (3, 0, 30, 30)
    assert asyncio.run(job()) == (0, 3, 30, 0)
    assert len(llm.requests) == 3


def test_equal_calls_at_one_time_are_paid_once() -> None:
    store, llm = MemoryStore(), CountingLlm(delay_s=0.01)

    async def job() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, 1, 1, 1)

    assert sorted(asyncio.run(job())) == [False, True, True]
    assert len(llm.requests) == 1


def test_a_failed_call_is_not_remembered() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> None:
        async with Ledger(store, llm) as ledger:
            for _ in range(2):
                with pytest.raises(CallFailed):
                    await ask(ledger, 13)

    asyncio.run(job())
    assert len(llm.requests) == 2
    assert list(store.list("ledger/")) == []


def test_a_kill_loses_only_what_was_not_flushed() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def killed() -> None:
        ledger = Ledger(store, llm)
        await ask(ledger, 1, 2)
        await ledger.flush()
        await ask(ledger, 3)

    asyncio.run(killed())

    async def restarted() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, 1, 2, 3)

    assert asyncio.run(restarted()) == [True, True, False]


def test_flushes_by_itself_after_so_many_calls_and_so_much_time() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def job(flush_every_s: float, flush_every_calls: int) -> None:
        async with Ledger(store, llm, flush_every_s, flush_every_calls) as ledger:
            await ask(ledger, 1, 2)
            async with asyncio.timeout(5):
                while not list(store.list("ledger/")):
                    await asyncio.sleep(0.001)

    asyncio.run(job(3600, 2))
    store = MemoryStore()
    asyncio.run(job(0.01, 1000))


def test_segments_grow_and_are_followed_by_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "SEGMENT_BYTES", 600)
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> None:
        async with Ledger(store, llm) as ledger:
            for n in range(12):
                await ask(ledger, n)
                await ledger.flush()

    asyncio.run(job())
    segments = list(store.list(shard_prefix("m", "00")))
    assert 1 < len(segments) < 12

    async def reread() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, *range(12))

    assert all(asyncio.run(reread()))


def test_shards_and_models_lie_apart_and_cold_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "CACHE_BYTES", 500)
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            for shard in ("00", "01", "02"):
                await ask(ledger, 1, 2, shard=shard)
                await ledger.flush()
            return await ask(ledger, 1, 2, shard="00")

    assert asyncio.run(job()) == [True, True]
    assert len(llm.requests) == 6
    assert {info.key.split("/")[2] for info in store.list("ledger/")} == {"00", "01", "02"}


class ReadOnlyStore(MemoryStore):
    def put(self, key: str, data: bytes) -> None:
        raise DependencyDown("planted")


def test_calls_that_cannot_be_remembered_are_not_made() -> None:
    llm = CountingLlm()

    async def job() -> None:
        async with Ledger(ReadOnlyStore(), llm, flush_every_s=0.001) as ledger:
            while True:
                await ask(ledger, len(llm.requests) + 100)
                await asyncio.sleep(0.005)

    with pytest.raises(DependencyDown):
        asyncio.run(job())
    assert len(llm.requests) < 50


def test_a_damaged_segment_is_named() -> None:
    store = MemoryStore()
    store.put(f"{shard_prefix('m', '00')}seg_1.jsonl", b'{"call_id": 1}\n')

    async def job() -> None:
        async with Ledger(store, CountingLlm()) as ledger:
            await ask(ledger, 1)

    with pytest.raises(TextmillError, match=r"seg_1\.jsonl is damaged"):
        asyncio.run(job())
