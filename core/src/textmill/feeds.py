"""What a job tells while it runs, as server-sent events: what was, and then what comes, until it ends.

The API is mostly in another process than the job, so events are read from the store: one reader for each job that is
followed, whatever the number of clients, and it reads only what is new. A client that comes back with the last id it
saw gets what it missed and nothing twice. Knows no HTTP framework, and not what the events say.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from textmill.errors import DependencyDown

LOOK_EVERY_S = 1.0
QUIET_S = 15.0
"""After so long a comment is sent, which keeps proxies from closing the connection."""
_AT_ONCE = 256
Position = tuple[int, int]
"""Where an event stands among those of its job; what the two numbers count is the job's business."""
BEGINNING: Position = (0, -1)


@dataclass(frozen=True)
class Event:
    """``frame`` is what is sent. Positions of one job's events rise."""

    position: Position
    frame: bytes


def frame(event_id: str, kind: str, data: str) -> bytes:
    """An event as the WHATWG's HTML standard has it (9.2.6). ``data`` is one line."""
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n".encode()


class Tail(ABC):
    """Reads what a job has told since the last look. Blocks; used by one thread at a time."""

    restarted = False
    """Whether what was just read takes the place of all before it. Who has seen that clears it."""

    def look(self) -> tuple[list[Event], str | None]:
        """New events, and how the job ended, once it has. Raises ``NotFound`` for what nobody asked for."""
        events = self._read()
        if events:
            return events, None
        ended = self._ended()
        # What was written between the two readings is the last there will be.
        return (self._read() if ended else []), ended

    @abstractmethod
    def _read(self) -> list[Event]: ...

    @abstractmethod
    def _ended(self) -> str | None: ...


class Feed:
    """The events of one job, in order, growing while somebody follows."""

    def __init__(self, name: str, tail: Tail, every_s: float = LOOK_EVERY_S) -> None:
        self.name = name
        self.events: list[Event] = []
        self.ended: str | None = None
        self.changed = asyncio.Event()
        self.followers = 0
        self.polling: asyncio.Task[None] | None = None
        self._tail = tail
        self._every_s = every_s

    async def look(self) -> None:
        events, self.ended = await asyncio.to_thread(self._tail.look)
        if self._tail.restarted:
            self.events, self._tail.restarted = [], False
        self.events += events
        if events or self.ended:
            self.changed.set()
            self.changed = asyncio.Event()

    async def poll(self) -> None:
        """Look until the job has ended; a store that is down is asked again."""
        while self.ended is None:
            await asyncio.sleep(self._every_s)
            with suppress(DependencyDown):
                await self.look()

    def after(self, position: Position) -> list[Event]:
        return self.events[bisect_right(self.events, position, key=lambda event: event.position) :]


class Feeds:
    """The feeds that are followed. Belongs to one event loop. ``tail`` makes the reader of a name's events."""

    def __init__(self, tail: Callable[[str], Tail], every_s: float = LOOK_EVERY_S) -> None:
        self._tail = tail
        self._every_s = every_s
        self._feeds: dict[str, Feed] = {}

    async def open(self, name: str) -> Feed:
        """Raises ``NotFound`` if nobody asked for such a thing, ``DependencyDown`` if the store can't be asked."""
        feed = self._feeds.get(name)
        if feed is None:
            feed = Feed(name, self._tail(name), self._every_s)
            await feed.look()
        return feed

    async def follow(self, feed: Feed, position: Position) -> AsyncIterator[bytes]:
        """Frames of the events past ``position``, each once and in order, then one that says how the job ended."""
        feed = self._feeds.setdefault(feed.name, feed)
        self._join(feed)
        try:
            while True:
                changed, events = feed.changed, feed.after(position)
                for start in range(0, len(events), _AT_ONCE):
                    yield b"".join(event.frame for event in events[start : start + _AT_ONCE])
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

    def _join(self, feed: Feed) -> None:
        feed.followers += 1
        if feed.polling is None or feed.polling.done():
            feed.polling = asyncio.create_task(feed.poll())

    def _leave(self, feed: Feed) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            self._feeds.pop(feed.name, None)
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
