"""Where the ledger lies in the store, one model at a time.

Layout, under ``ledger/<16 hex of the model>/``:

- ``<shard>/<segment>.jsonl``: calls by shard, for readers. Callers derive the shard from the document, so that a job on
  a few documents reads a few of them.
- ``journal/<segment>.jsonl``: calls as they were paid, one object a flush whatever the number of shards. A journal is
  folded into the shards at the end, or when it has grown large; then it is deleted. One that a killed worker left is
  folded by the next to come. Folding writes the shards first: what is written twice is the same line twice.

Costs: opening is one listing, and one GET a journal left behind. A shard is one GET a segment, at most
``MOST_SEGMENTS`` small ones. A flush is one PUT, folding one PUT a shard touched. Knows nothing of LLMs.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import Field

from textmill.contracts.base import StoredContract, new_id, utc_now
from textmill.errors import NotFound, TextmillError
from textmill.store import ObjectStore

SEGMENT_BYTES = 1024 * 1024
"""Segments past half of this aren't merged any more."""
MOST_SEGMENTS = 16
_JOURNAL = "journal"
_CALL_ID = re.compile(rb'\{"schema_version":1,"call_id":"([^"]+)",')
_LINE_OVERHEAD_BYTES = 250
"""What Python adds to a line in memory: its key, its object, its place in a dict."""


class LedgerEntry(StoredContract):
    """One paid call: what came back, and the hash of what was asked. ``model`` is who answered."""

    call_id: str
    model: str
    prompt_version: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    shard: str = ""
    created_at: datetime = Field(default_factory=utc_now)


def model_prefix(model: str) -> str:
    return f"ledger/{hashlib.sha256(model.encode()).hexdigest()[:16]}/"


@dataclass(eq=False)
class Shard:
    """The calls of some documents, as lines that are parsed when they are asked for."""

    lines: dict[str, bytes]
    unfolded: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size_bytes = sum(map(len, self.lines.values())) + _LINE_OVERHEAD_BYTES * len(self.lines)

    def add(self, call_id: str, line: bytes) -> None:
        self.lines[call_id] = line
        self.unfolded.append(line)
        self.size_bytes += len(line) + _LINE_OVERHEAD_BYTES

    def find(self, call_id: str) -> LedgerEntry | None:
        line = self.lines.get(call_id)
        return LedgerEntry.model_validate_json(line) if line else None


class Shelf:
    """The ledger of one model. Belongs to one event loop; the store is spoken to on threads.

    What other workers pay for meanwhile is seen by those that open the shelf later.
    """

    def __init__(self, store: ObjectStore, model: str) -> None:
        self.shards: OrderedDict[str, Shard] = OrderedDict()
        """Those in memory, least lately used first."""
        self.unfolded_bytes = 0
        self._store = store
        self._prefix = model_prefix(model)
        self._segments: dict[str, dict[str, int]] | None = None
        """By shard, each segment's key and size in bytes. None until the shelf is open."""
        self._journals: list[str] = []
        self._left_behind: dict[str, list[tuple[str, bytes]]] = {}
        self._unwritten: list[bytes] = []
        self._opening = asyncio.Lock()

    async def shard(self, name: str) -> Shard:
        """The shard, read on first use."""
        if name not in self.shards:
            async with self._opening:
                if name not in self.shards:
                    self.shards[name] = await self._read_shard(name)
        self.shards.move_to_end(name)
        return self.shards[name]

    def add(self, entry: LedgerEntry, shard: Shard) -> None:
        line = entry.to_json() + b"\n"
        shard.add(entry.call_id, line)
        self._unwritten.append(line)
        self.unfolded_bytes += len(line)

    async def flush(self) -> None:
        """Write what was added since the last flush. What is added meanwhile waits for the next."""
        lines, self._unwritten = self._unwritten, []
        if not lines:
            return
        key = f"{self._prefix}{_JOURNAL}/{new_id('seg')}.jsonl"
        try:
            await asyncio.to_thread(self._store.put, key, b"".join(lines))
        except BaseException:
            self._unwritten = lines + self._unwritten
            raise
        self._journals.append(key)

    async def fold(self) -> None:
        """Move what was flushed from the journal to the shards."""
        journals, self._journals = self._journals, []
        if not journals:
            return
        for name in list(self._left_behind):
            await self.shard(name)
        folded = {name: shard.unfolded for name, shard in self.shards.items() if shard.unfolded}
        for name in folded:
            self.shards[name].unfolded = []
        self.unfolded_bytes = 0
        try:
            await asyncio.to_thread(self._write, folded, journals)
        except BaseException:
            for name, lines in folded.items():
                self.shards[name].unfolded[:0] = lines
            self._journals[:0] = journals
            raise

    async def _read_shard(self, name: str) -> Shard:
        while True:
            try:
                if self._segments is None:
                    await asyncio.to_thread(self._open)
                assert self._segments is not None
                shard = Shard(await asyncio.to_thread(self._lines, self._segments.get(name, {})))
            except NotFound:  # another worker folded or merged it just now
                self._segments = None
            else:
                for call_id, line in self._left_behind.pop(name, ()):
                    shard.add(call_id, line)
                return shard

    def _open(self) -> None:
        segments: dict[str, dict[str, int]] = {}
        for info in self._store.list(self._prefix):
            segments.setdefault(info.key.split("/")[2], {})[info.key] = info.size_bytes
        for key in segments.pop(_JOURNAL, {}):
            if key not in self._journals:
                for call_id, line in _lines(self._store, key):
                    shard = LedgerEntry.model_validate_json(line).shard
                    self._left_behind.setdefault(shard, []).append((call_id, line))
                self._journals.append(key)
        self._segments = segments

    def _lines(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {call_id: line for key in list(keys) for call_id, line in _lines(self._store, key)}

    def _write(self, folded: Mapping[str, list[bytes]], journals: list[str]) -> None:
        """The shards first, the journals' end last: what breaks off between them is only written twice."""
        assert self._segments is not None
        by_shard = self._segments
        for name, lines in folded.items():
            self._write_shard(name, lines, by_shard.setdefault(name, {}))
        for key in journals:
            self._store.delete(key)

    def _write_shard(self, name: str, lines: list[bytes], segments: dict[str, int]) -> None:
        """As one more segment, which takes in the small ones when there are too many of these."""
        small = [key for key, size in segments.items() if size <= SEGMENT_BYTES // 2]
        merged = small if len(small) >= MOST_SEGMENTS else []
        data = b"".join([*self._gone_or(merged), *lines])
        key = f"{self._prefix}{name}/{new_id('seg')}.jsonl"
        self._store.put(key, data)
        segments[key] = len(data)
        for old in merged:
            self._store.delete(old)
            del segments[old]

    def _gone_or(self, keys: Iterable[str]) -> Iterator[bytes]:
        """The segments' bytes. One that is gone lies in what another worker merged."""
        for key in keys:
            try:
                yield self._store.get(key)
            except NotFound:
                continue


def _lines(store: ObjectStore, key: str) -> Iterator[tuple[str, bytes]]:
    """Each call's id and line. Raises ``TextmillError`` for what is no ledger."""
    for line in store.get(key).splitlines(keepends=True):
        match = _CALL_ID.match(line)
        if match is None:
            raise TextmillError(
                f"the ledger segment {key} is damaged; restore it, or delete it to have its calls made and paid for "
                "again"
            )
        yield match[1].decode(), line
