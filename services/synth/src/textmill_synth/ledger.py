"""Remembers every LLM call in the store, so that no job ever pays for the same call twice. ``segments`` has the layout.

``kill -9`` loses the calls since the last flush, at most ``flush_every_s`` or ``flush_every_calls`` of them. Memory is
bounded by ``CACHE_BYTES`` plus ``FOLD_BYTES`` of calls that aren't in their shards yet.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from weakref import WeakValueDictionary

from pydantic import ValidationError

from textmill.contracts.datasets import Cost
from textmill.errors import TextmillError
from textmill.store import ObjectStore
from textmill_synth.llm import ChatRequest, Completion, Llm
from textmill_synth.segments import LedgerEntry, Shard, Shelf

CACHE_BYTES = 64 * 1024 * 1024
FOLD_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Call:
    """A call's result, ``reused`` when it was found in the ledger and cost nothing now."""

    call_id: str
    completion: Completion
    reused: bool


@dataclass
class _Tokens:
    prompt: int = 0
    completion: int = 0

    def add(self, entry: LedgerEntry) -> None:
        self.prompt += entry.prompt_tokens
        self.completion += entry.completion_tokens

    def cost(self) -> Cost:
        return Cost(prompt_tokens=self.prompt, completion_tokens=self.completion)


class Ledger:
    """Answers from the store what was asked before, and asks ``llm`` the rest. Belongs to one event loop.

    Use as ``async with``: leaving it, however, flushes. Raises ``DependencyDown`` from ``ask`` or on leaving when the
    store can't be written: calls that can't be remembered aren't made.
    """

    def __init__(self, store: ObjectStore, llm: Llm, flush_every_s: float = 2.0, flush_every_calls: int = 1024) -> None:
        self._store = store
        self._llm = llm
        self._flush_every_s = flush_every_s
        self._flush_every_calls = flush_every_calls
        self._shelves: dict[str, Shelf] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unflushed = 0
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._closing = False
        self._used, self._paid = _Tokens(), _Tokens()
        self.calls = 0
        self.calls_reused = 0
        self.observe: Callable[[Call], None] = lambda call: None
        """Is told of every answer, in the context of who asked."""

    async def __aenter__(self) -> "Ledger":
        self._flusher = asyncio.create_task(self._flush_regularly())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._flusher is not None:  # not cancelled: a thread that writes can't be
            self._closing = True
            self._full.set()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.flush()
        for shelf in self._shelves.values():
            await shelf.fold()

    @property
    def used(self) -> Cost:
        """Of all calls answered."""
        return self._used.cost()

    @property
    def paid(self) -> Cost:
        """Of the calls made now."""
        return self._paid.cost()

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
            shelf = self._shelf(request.model)
            lines = await shelf.shard(shard)
            entry = _find(lines, key)
            known = entry is not None
            if entry is None:
                completion = await self._llm.complete(request)
                entry = _entry(request, completion, shard, prompt_version)
                shelf.add(entry, await shelf.shard(shard))
                self._count_paid(entry)
        self.calls_reused += known
        self._used.add(entry)
        call = Call(key, _completion(entry), reused=known)
        self.observe(call)
        return call

    async def flush(self) -> None:
        """Write what was paid since the last flush. What is added meanwhile waits for the next."""
        async with self._flushing:
            self._full.clear()
            self._unflushed = 0
            for shelf in self._shelves.values():
                await shelf.flush()
                if shelf.unfolded_bytes > FOLD_BYTES:
                    await shelf.fold()
            self._evict()

    def _shelf(self, model: str) -> Shelf:
        if model not in self._shelves:
            self._shelves[model] = Shelf(self._store, model)
        return self._shelves[model]

    def _count_paid(self, entry: LedgerEntry) -> None:
        self.calls += 1
        self._paid.add(entry)
        self._unflushed += 1
        if self._unflushed >= self._flush_every_calls:
            self._full.set()

    def _evict(self) -> None:
        """Forget the shards used longest ago, past ``CACHE_BYTES``; never one with calls that aren't folded."""
        total = sum(shard.size_bytes for shelf in self._shelves.values() for shard in shelf.shards.values())
        for shelf, name, shard in list(self._cold_first()):
            if total <= CACHE_BYTES:
                return
            if not shard.unfolded:
                total -= shard.size_bytes
                del shelf.shards[name]

    def _cold_first(self) -> Iterator[tuple[Shelf, str, Shard]]:
        for shelf in self._shelves.values():
            for name, shard in shelf.shards.items():
                yield shelf, name, shard

    async def _flush_regularly(self) -> None:
        while not self._closing:
            try:
                async with asyncio.timeout(self._flush_every_s):
                    await self._full.wait()
            except TimeoutError:
                pass
            await self.flush()


def _find(shard: Shard, key: str) -> LedgerEntry | None:
    try:
        return shard.find(key)
    except ValidationError as exc:
        raise TextmillError(
            f"the ledger's entry of the call {key} is damaged ({exc.error_count()} errors); restore its segment, or "
            "delete it to have its calls made and paid for again"
        ) from exc


def _entry(request: ChatRequest, completion: Completion, shard: str, prompt_version: str) -> LedgerEntry:
    return LedgerEntry(
        call_id=request.key,
        model=completion.model or request.model,
        prompt_version=prompt_version,
        text=completion.text,
        finish_reason=completion.finish_reason,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        shard=shard,
    )


def _completion(entry: LedgerEntry) -> Completion:
    return Completion(entry.text, entry.finish_reason, entry.prompt_tokens, entry.completion_tokens, entry.model)
