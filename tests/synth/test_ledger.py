"""Every call is paid once: across restarts, within a job, and after a kill at most one flush is lost."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from textmill.contracts.datasets import Message
from textmill.errors import DependencyDown, TextmillError
from textmill.store import MemoryStore
from textmill_synth import ledger as ledger_module
from textmill_synth import segments as segments_module
from textmill_synth.ledger import Ledger
from textmill_synth.llm import CallFailed, ChatRequest, Completion
from textmill_synth.segments import LedgerEntry, model_prefix

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
            async with asyncio.timeout(60):
                while not list(store.list("ledger/")):
                    await asyncio.sleep(0.001)

    asyncio.run(job(3600, 2))
    store = MemoryStore()
    asyncio.run(job(0.01, 1000))


def test_a_flush_is_one_object_whatever_the_number_of_shards() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> list[str]:
        async with Ledger(store, llm, flush_every_s=3600) as ledger:
            for n in range(30):
                await ask(ledger, n if n != 13 else 130, shard=f"{n:02x}")
            await ledger.flush()
            return [info.key for info in store.list("ledger/")]

    assert [key.split("/")[2] for key in asyncio.run(job())] == ["journal"]
    assert {info.key.split("/")[2] for info in store.list("ledger/")} == {f"{n:02x}" for n in range(30)}


def test_many_small_segments_are_merged_and_large_ones_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "MOST_SEGMENTS", 4)
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", 4000)
    store, llm = MemoryStore(), CountingLlm()

    async def job(*samples: int) -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, *samples)

    asyncio.run(job(*range(10)))
    [large] = store.list("ledger/")
    assert large.size_bytes > 2000
    for n in range(20, 40):
        asyncio.run(job(n))
        small = [info for info in store.list("ledger/") if info.size_bytes <= 2000]
        assert len(small) <= 4
    assert large in list(store.list("ledger/"))
    assert all(asyncio.run(job(*range(10), *range(20, 40))))


def test_what_a_killed_worker_left_is_folded_by_the_next_and_read_by_a_third() -> None:
    store, llm = MemoryStore(), CountingLlm()

    async def killed() -> None:
        ledger = Ledger(store, llm)
        await ask(ledger, 1, shard="00")
        await ask(ledger, 2, shard="01")
        await ledger.flush()

    async def job(sample: int, shard: str) -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, sample, shard=shard)

    asyncio.run(killed())
    assert asyncio.run(job(1, "00")) == [True]
    assert {info.key.split("/")[2] for info in store.list("ledger/")} == {"00", "01"}
    assert asyncio.run(job(2, "01")) == [True]


def test_two_workers_at_once_lose_nothing_of_each_other() -> None:
    """The second opens while the first's journal lies there, folds it, and closes first."""
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> None:
        async with Ledger(store, llm) as first:
            await ask(first, 1)
            await first.flush()
            async with Ledger(store, llm) as second:
                assert await ask(second, 1) == [True]
                await ask(second, 2)
            await ask(first, 3)

    async def reread() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, 1, 2, 3)

    asyncio.run(job())
    assert asyncio.run(reread()) == [True] * 3
    assert {info.key.split("/")[2] for info in store.list("ledger/")} == {"00"}


class FoldingStore(MemoryStore):
    """Another worker folds the journal between this one's listing and its read."""

    fold: bytes | None = None

    def get(self, key: str) -> bytes:
        if "/journal/" in key and self.fold is None:
            self.fold = super().get(key)
            self.put(f"{model_prefix('m')}00/seg_1.jsonl", self.fold)
            self.delete(key)
        return super().get(key)


def test_a_journal_that_is_folded_under_the_reader_is_found_in_its_shard() -> None:
    store, llm = FoldingStore(), CountingLlm()

    async def killed() -> None:
        ledger = Ledger(store, llm)
        await ask(ledger, 1)
        await ledger.flush()

    async def job() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            return await ask(ledger, 1)

    asyncio.run(killed())
    assert asyncio.run(job()) == [True]
    assert store.fold is not None


def test_the_entry_names_who_answered_and_lies_with_who_was_asked() -> None:
    class Fallback(CountingLlm):
        async def complete(self, request: ChatRequest) -> Completion:
            return replace(await super().complete(request), model="other")

    store = MemoryStore()

    async def job() -> str:
        async with Ledger(store, Fallback()) as ledger:
            return (await ledger.ask(REQUEST, "00", "p@1")).completion.model

    assert [asyncio.run(job()) for _ in range(2)] == ["other", "other"]
    [info] = store.list(model_prefix("m"))
    assert LedgerEntry.model_validate_json(store.get(info.key)).model == "other"


def test_shards_and_models_lie_apart_and_cold_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "CACHE_BYTES", 500)
    store, llm = MemoryStore(), CountingLlm()

    async def job() -> list[bool]:
        async with Ledger(store, llm) as ledger:
            for shard in ("00", "01", "02"):
                await ask(ledger, 1, 2, shard=shard)
                await ledger.flush()
                assert len(ledger._shelves["m"].shards) <= 1
            return await ask(ledger, 1, 2, shard="00")

    monkeypatch.setattr(ledger_module, "FOLD_BYTES", 0)
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
                await asyncio.sleep(0.1)

    with pytest.raises(DependencyDown):
        asyncio.run(job())
    assert len(llm.requests) < 50


def test_a_damaged_segment_is_named() -> None:
    store = MemoryStore()
    store.put(f"{model_prefix('m')}00/seg_1.jsonl", b'{"call_id": 1}\n')

    async def job() -> None:
        async with Ledger(store, CountingLlm()) as ledger:
            await ask(ledger, 1)

    with pytest.raises(TextmillError, match=r"seg_1\.jsonl is damaged"):
        asyncio.run(job())
