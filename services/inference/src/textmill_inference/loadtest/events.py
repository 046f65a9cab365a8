"""A load test's events: written to the store as it runs, read back by any process, and sent as server-sent events.

The API is mostly in another process than the test. Events lie in chunks of a few hundred lines, so that a test of
hours is neither one growing object nor an object a second. An attempt that follows another has its own part; ids are
``part.number``, so a client that comes back with the last id it saw gets what it missed and nothing twice.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from textmill.contracts.loadoptions import LoadtestEvent, LoadtestOwner
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.jobs import Jobs
from textmill.store import ObjectStore

LOOK_EVERY_S = 1.0
QUIET_S = 15.0
"""After so long a comment is sent, which keeps proxies from closing the connection."""
CHUNK = 256
_AT_ONCE = 256
_EVENT_ID = re.compile(r"(\d{1,6})\.(\d{1,9})", re.ASCII)
Position = tuple[int, int]
"""Part, and the event's number in it."""
BEGINNING: Position = (0, -1)


@dataclass(frozen=True)
class StoredEvent:
    position: Position
    event: LoadtestEvent

    @property
    def frame(self) -> bytes:
        part, number = self.position
        data = self.event.line()
        return f"id: {part}.{number}\nevent: {self.event.kind}\ndata: {data}\n\n".encode()


def parse_event_id(text: str) -> Position:
    """Of a ``Last-Event-ID``. Raises ``BadRequest`` for what no event of ours had."""
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise BadRequest(f"Last-Event-ID {text[:40]!r} is no id of these events, which look like 1.40")
    return int(found[1]), int(found[2])


def owner_key(loadtest_id: str) -> str:
    """Where a load test says whose it is."""
    return f"loadtests/{loadtest_id}/job.json"


def _prefix(loadtest_id: str) -> str:
    return f"loadtests/{loadtest_id}/events/"


class EventLog:
    """Writes one attempt's events. Each is in the store when ``tell`` returns, or kept for the next that gets through:
    a store that is away for a moment must not end a test."""

    def __init__(self, store: ObjectStore, loadtest_id: str) -> None:
        self._store = store
        parts = [_part_of(info.key) for info in store.list(_prefix(loadtest_id))]
        self.part = max(parts, default=0) + 1
        self._prefix = f"{_prefix(loadtest_id)}{self.part:06d}-"
        self._chunk = 0
        self._lines: list[bytes] = []

    def tell(self, event: LoadtestEvent) -> None:
        if len(self._lines) >= CHUNK and self._flush():
            self._chunk, self._lines = self._chunk + 1, []
        self._lines.append(event.line().encode() + b"\n")
        self._flush()

    def _flush(self) -> bool:
        with suppress(DependencyDown):
            self._store.put(f"{self._prefix}{self._chunk:06d}.jsonl", b"".join(self._lines))
            return True
        return False


def _part_of(key: str) -> int:
    return int(key.rpartition("/")[2].partition("-")[0])


class EventTail:
    """Reads what a test has told since the last look. Blocks; used by one thread at a time."""

    def __init__(self, store: ObjectStore, jobs: Jobs, loadtest_id: str) -> None:
        self.loadtest_id = loadtest_id
        self._store = store
        self._jobs = jobs
        self._key = ""
        self._lines = 0
        self._number = -1

    def look(self) -> tuple[list[StoredEvent], str | None]:
        """New events, and how the job ended, once it has. Raises ``NotFound`` for a test that nobody asked for."""
        events = self._read()
        if events:
            return events, None
        ended = self._ended()
        # What was written between the two readings is the last there will be.
        return (self._read() if ended else []), ended

    def _read(self) -> list[StoredEvent]:
        found: list[StoredEvent] = []
        # The chunk read last may have grown; those after it are new.
        before = self._key[:-1] if self._key else ""
        for info in list(self._store.list(_prefix(self.loadtest_id), after=before)):
            if info.key != self._key:
                self._number = -1 if not self._key or _part_of(info.key) != _part_of(self._key) else self._number
                self._key, self._lines = info.key, 0
            lines = self._store.get(info.key).splitlines()
            for line in lines[self._lines :]:
                self._number += 1
                event = LoadtestEvent.model_validate_json(line)
                found.append(StoredEvent((_part_of(info.key), self._number), event))
            self._lines = max(self._lines, len(lines))
        return found

    def _ended(self) -> str | None:
        view = self._jobs.view("loadtest", read_owner(self._store, self.loadtest_id).job_id)
        return view.state if view.finished else None


def read_owner(store: ObjectStore, loadtest_id: str) -> LoadtestOwner:
    """Raises ``NotFound``."""
    try:
        return LoadtestOwner.model_validate_json(store.get(owner_key(loadtest_id)))
    except NotFound as exc:
        raise NotFound(f"no load test {loadtest_id!r}; GET /v1/loadtests lists them") from exc


class EventFeed:
    """The events of one test, in order, growing while somebody follows."""

    def __init__(self, tail: EventTail, every_s: float) -> None:
        self.loadtest_id = tail.loadtest_id
        self.events: list[StoredEvent] = []
        self.ended: str | None = None
        self.changed = asyncio.Event()
        self.followers = 0
        self.polling: asyncio.Task[None] | None = None
        self._tail = tail
        self._every_s = every_s

    async def look(self) -> None:
        events, self.ended = await asyncio.to_thread(self._tail.look)
        self.events += events
        if events or self.ended:
            self.changed.set()
            self.changed = asyncio.Event()

    async def poll(self) -> None:
        """Look until the test has ended; a store that is down is asked again."""
        while self.ended is None:
            await asyncio.sleep(self._every_s)
            with suppress(DependencyDown):
                await self.look()

    def after(self, position: Position) -> list[StoredEvent]:
        return [event for event in self.events if event.position > position]


class EventFeeds:
    """The feeds that are followed. Belongs to one event loop."""

    def __init__(self, store: ObjectStore, jobs: Jobs, every_s: float = LOOK_EVERY_S) -> None:
        self._store = store
        self._jobs = jobs
        self._every_s = every_s
        self._feeds: dict[str, EventFeed] = {}

    async def open(self, loadtest_id: str) -> EventFeed:
        """Raises ``NotFound`` if nobody asked for such a test, ``DependencyDown`` if the store can't be asked."""
        feed = self._feeds.get(loadtest_id)
        if feed is None:
            feed = EventFeed(EventTail(self._store, self._jobs, loadtest_id), self._every_s)
            await feed.look()
        return feed

    async def follow(self, feed: EventFeed, position: Position) -> AsyncIterator[bytes]:
        """Frames of the events past ``position``, each once and in order, then one that says how the job ended."""
        feed = self._feeds.setdefault(feed.loadtest_id, feed)
        feed.followers += 1
        if feed.polling is None or feed.polling.done():
            feed.polling = asyncio.create_task(feed.poll())
        try:
            while True:
                changed, events = feed.changed, feed.after(position)
                for start in range(0, len(events), _AT_ONCE):
                    yield b"".join(e.frame for e in events[start : start + _AT_ONCE])
                position = events[-1].position if events else position
                if feed.ended is not None:
                    yield f"event: end\ndata: {json.dumps({'state': feed.ended})}\n\n".encode()
                    return
                if feed.polling is None or feed.polling.done():
                    return  # it failed, and asyncio logs how: the client's next connection starts it again
                if not await _within(QUIET_S, changed, feed.polling):
                    yield b": still here\n\n"
        finally:
            self._leave(feed)

    def _leave(self, feed: EventFeed) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            self._feeds.pop(feed.loadtest_id, None)
            if feed.polling is not None:
                feed.polling.cancel()
                feed.polling = None


async def _within(seconds: float, changed: asyncio.Event, polling: "asyncio.Task[None]") -> bool:
    """Whether there was a change, or an end of looking for any, in that time."""
    waiting = asyncio.ensure_future(changed.wait())
    try:
        done, _ = await asyncio.wait({waiting, polling}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return bool(done)
