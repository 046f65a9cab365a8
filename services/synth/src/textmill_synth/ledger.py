"""Remembers every LLM call in the store, so that no job ever pays for the same call twice.

Layout: ``ledger/<16 hex of the model>/<2 hex>/<segment>.jsonl``. The two hex digits are the shard; callers derive it
from the document, so that a job on a few documents reads a few shards, and a flush of passages in document order
writes few. A segment grows with each flush (it is rewritten whole, up to ``SEGMENT_BYTES``) and has one writer.

Costs: opening a shard is one listing and one GET per full segment, about 700 bytes a call ever made on its documents
with this model (a 256th of all). A flush is one PUT per shard touched in the last ``flush_every_s``. ``kill -9`` loses
the calls since the last flush. Memory is bounded by ``CACHE_BYTES`` plus the open segments.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from weakref import WeakValueDictionary

from pydantic import Field, ValidationError

from textmill.contracts.base import StoredContract, new_id, utc_now
from textmill.contracts.datasets import Cost
from textmill.errors import TextmillError
from textmill.store import ObjectStore
from textmill_synth.llm import ChatRequest, Completion, Llm

SEGMENT_BYTES = 1024 * 1024
CACHE_BYTES = 256 * 1024 * 1024


class LedgerEntry(StoredContract):
    """One paid call: what came back, and the hash of what was asked."""

    call_id: str
    model: str
    prompt_version: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    created_at: datetime = Field(default_factory=utc_now)


@dataclass(frozen=True)
class Call:
    """A call's result, ``reused`` when it was found in the ledger and cost nothing now."""

    call_id: str
    completion: Completion
    reused: bool


@dataclass
class _Shard:
    prefix: str
    lines: dict[str, bytes]
    segment_key: str = ""
    segment: bytearray = field(default_factory=bytearray)
    dirty: bool = False

    def __post_init__(self) -> None:
        self.size_bytes = sum(map(len, self.lines.values()))
        self.roll()

    def add(self, entry: LedgerEntry) -> None:
        line = entry.to_json() + b"\n"
        self.lines[entry.call_id] = line
        self.size_bytes += len(line)
        if len(self.segment) >= SEGMENT_BYTES and not self.dirty:
            self.roll()
        self.segment += line
        self.dirty = True

    def roll(self) -> None:
        self.segment_key, self.segment = f"{self.prefix}{new_id('seg')}.jsonl", bytearray()


class Ledger:
    """Answers from the store what was asked before, and asks ``llm`` the rest. Belongs to one event loop.

    ``used`` is the cost of all calls answered, ``paid`` of those made now.

    Use as ``async with``: leaving it, however, flushes. Raises ``DependencyDown`` from ``ask`` or on leaving when the
    store can't be written: calls that can't be remembered aren't made.
    """

    def __init__(self, store: ObjectStore, llm: Llm, flush_every_s: float = 2.0, flush_every_calls: int = 256) -> None:
        self._store = store
        self._llm = llm
        self._flush_every_s = flush_every_s
        self._flush_every_calls = flush_every_calls
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unflushed = 0
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self.calls = 0
        self.calls_reused = 0
        self.used = Cost()
        self.paid = Cost()

    async def __aenter__(self) -> "Ledger":
        self._flusher = asyncio.create_task(self._flush_regularly())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.flush()

    async def ask(self, request: ChatRequest, shard: str, prompt_version: str) -> Call:
        """The answer to the request, from the ledger if it is there. Equal requests at one time are one call.

        Raises:
            CallFailed: this call got no answer; nothing is remembered.
            DependencyDown: the endpoint or the store can't be reached.
        """
        if self._flusher is not None and self._flusher.done():
            self._flusher.result()
        key = request.key
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            known = await self._find(request.model, shard, key)
            entry = known or await self._pay(request, shard, key, prompt_version)
        self.calls_reused += known is not None
        self.used = _add(self.used, entry)
        completion = Completion(entry.text, entry.finish_reason, entry.prompt_tokens, entry.completion_tokens)
        return Call(key, completion, reused=known is not None)

    async def flush(self) -> None:
        """Write what was paid since the last flush. What is added meanwhile waits for the next."""
        async with self._flushing:
            self._full.clear()
            self._unflushed = 0
            for shard in [s for s in self._shards.values() if s.dirty]:
                data = bytes(shard.segment)
                await asyncio.to_thread(self._store.put, shard.segment_key, data)
                shard.dirty = len(shard.segment) > len(data)

    async def _pay(self, request: ChatRequest, shard: str, key: str, prompt_version: str) -> LedgerEntry:
        completion = await self._llm.complete(request)
        entry = LedgerEntry(
            call_id=key,
            model=request.model,
            prompt_version=prompt_version,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )
        (await self._open(request.model, shard)).add(entry)
        self.calls += 1
        self.paid = _add(self.paid, entry)
        self._unflushed += 1
        if self._unflushed >= self._flush_every_calls:
            self._full.set()
        return entry

    async def _find(self, model: str, shard: str, key: str) -> LedgerEntry | None:
        line = (await self._open(model, shard)).lines.get(key)
        return LedgerEntry.model_validate_json(line) if line else None

    async def _open(self, model: str, shard: str) -> _Shard:
        prefix = shard_prefix(model, shard)
        lock = self._locks.setdefault(prefix, asyncio.Lock())
        async with lock:
            if prefix not in self._shards:
                lines = await asyncio.to_thread(lambda: dict(_stored_lines(self._store, prefix)))
                self._shards[prefix] = _Shard(prefix, lines)
                self._evict()
        self._shards.move_to_end(prefix)
        return self._shards[prefix]

    def _evict(self) -> None:
        """Forget the shards used longest ago, past ``CACHE_BYTES``; never one with unflushed calls, nor the newest."""
        total = sum(s.size_bytes for s in self._shards.values())
        for prefix in list(self._shards)[:-1]:
            if total <= CACHE_BYTES:
                return
            if not self._shards[prefix].dirty:
                total -= self._shards.pop(prefix).size_bytes

    async def _flush_regularly(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._flush_every_s):
                    await self._full.wait()
            except TimeoutError:
                pass
            await self.flush()


def _add(cost: Cost, entry: LedgerEntry) -> Cost:
    return Cost(
        prompt_tokens=cost.prompt_tokens + entry.prompt_tokens,
        completion_tokens=cost.completion_tokens + entry.completion_tokens,
    )


def shard_prefix(model: str, shard: str) -> str:
    return f"ledger/{hashlib.sha256(model.encode()).hexdigest()[:16]}/{shard}/"


def _stored_lines(store: ObjectStore, prefix: str) -> Iterator[tuple[str, bytes]]:
    for segment in store.list(prefix):
        for line in store.get(segment.key).splitlines(keepends=True):
            try:
                yield LedgerEntry.model_validate_json(line).call_id, line
            except ValidationError as exc:
                raise TextmillError(
                    f"the ledger segment {segment.key} is damaged ({exc.error_count()} errors in a line); restore it, "
                    "or delete it to have its calls made and paid for again"
                ) from exc
