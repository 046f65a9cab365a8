"""A run's steps and evaluations as server-sent events: what was, and then what comes, until the run ends.

The API is mostly in another process than the training, so it reads the metrics from the store: one reader for each run
that is followed, whatever the number of clients, and it reads only what is new. Knows no HTTP framework and no torch.
"""

import asyncio
import json
import re
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from textmill.contracts.runs import EvalMetrics, RunJob, StepMetrics
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.runstore import job_key
from textmill_trainer.stored import latest_metrics

LOOK_EVERY_S = 1.0
QUIET_S = 15.0
"""After so long a comment is sent, which keeps proxies from closing the connection."""
_AT_ONCE = 256
_EVENT_ID = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?", re.ASCII)
Position = tuple[int, int]
"""Step, and which of that step's events: first the step, then its evaluations."""


@dataclass(frozen=True)
class Event:
    position: Position
    frame: bytes


def parse_event_id(text: str) -> Position:
    """Of a ``Last-Event-ID``. Raises ``BadRequest`` for what no event of ours had."""
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise BadRequest(f"Last-Event-ID {text[:40]!r} is no id of these events: they are steps, like 40 or 40.1")
    return int(found[1]), int(found[2] or 0)


class RunTail:
    """Reads what a run has written since the last look. Blocks; used by one thread at a time."""

    def __init__(self, store: ObjectStore, jobs: Jobs, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._jobs = jobs
        self._key = ""
        self._offset = 0
        self.restarted = False
        """Whether what was just read is of a newer attempt, whose metrics start over."""

    def look(self) -> tuple[list[StepMetrics | EvalMetrics], str | None]:
        """New metrics, and how the run's job ended, once it has.

        Raises:
            NotFound: nobody has begun on such a run.
        """
        metrics = self._read()
        if metrics:
            return metrics, None
        ended = self._ended()
        # What was uploaded between the two readings is the last there will be.
        return (self._read() if ended else []), ended

    def _read(self) -> list[StepMetrics | EvalMetrics]:
        try:
            _, key, size = latest_metrics(self._store, self.run_id)
        except NotFound:
            return []
        if key != self._key or size < self._offset:
            self._key, self._offset, self.restarted = key, 0, True
        data = self._store.get_range(key, self._offset, size) if size > self._offset else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse_metrics(whole))

    def _ended(self) -> str | None:
        try:
            job_id = RunJob.model_validate_json(self._store.get(job_key(self.run_id))).job_id
        except NotFound as exc:
            raise NotFound(
                f"no run {self.run_id!r}, or nobody has begun on it yet: its job tells how far it is"
            ) from exc
        view = self._jobs.view("train", job_id)
        return view.state if view.finished else None


class RunFeed:
    """The events of one run, in order, growing while somebody follows."""

    def __init__(self, tail: RunTail, every_s: float) -> None:
        self.run_id = tail.run_id
        self.events: list[Event] = []
        self.ended: str | None = None
        self.changed = asyncio.Event()
        self.followers = 0
        self.polling: asyncio.Task[None] | None = None
        self._tail = tail
        self._every_s = every_s

    async def look(self) -> None:
        metrics, self.ended = await asyncio.to_thread(self._tail.look)
        if self._tail.restarted:
            self.events, self._tail.restarted = [], False
        for metric in metrics:
            self._append(metric)
        if metrics or self.ended:
            self.changed.set()
            self.changed = asyncio.Event()

    async def poll(self) -> None:
        """Look until the run has ended; a store that is down is asked again."""
        while self.ended is None:
            await asyncio.sleep(self._every_s)
            with suppress(DependencyDown):
                await self.look()

    def after(self, position: Position) -> list[Event]:
        return self.events[bisect_right(self.events, position, key=lambda e: e.position) :]

    def _append(self, metric: StepMetrics | EvalMetrics) -> None:
        last = self.events[-1].position if self.events else (-1, 0)
        step, order = metric.step, last[1] + 1 if metric.step == last[0] else 0
        event_id = f"{step}.{order}" if order else str(step)
        frame = f"id: {event_id}\nevent: {metric.kind}\ndata: {metric.model_dump_json()}\n\n".encode()
        self.events.append(Event((step, order), frame))


class RunFeeds:
    """The feeds that are followed. Belongs to one event loop."""

    def __init__(self, store: ObjectStore, jobs: Jobs, every_s: float = LOOK_EVERY_S) -> None:
        self._store = store
        self._jobs = jobs
        self._every_s = every_s
        self._feeds: dict[str, RunFeed] = {}

    async def open(self, run_id: str) -> RunFeed:
        """Raises ``NotFound`` if nobody has begun on such a run, ``DependencyDown`` if the store can't be asked."""
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = RunFeed(RunTail(self._store, self._jobs, run_id), self._every_s)
            await feed.look()
        return feed

    async def follow(self, feed: RunFeed, position: Position) -> AsyncIterator[bytes]:
        """Frames of the events past ``position``, each once and in order, then one that says how the run ended."""
        feed = self._feeds.setdefault(feed.run_id, feed)
        self._join(feed)
        try:
            while True:
                changed = feed.changed
                events = feed.after(position)
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

    def _join(self, feed: RunFeed) -> None:
        feed.followers += 1
        if feed.polling is None or feed.polling.done():
            feed.polling = asyncio.create_task(feed.poll())

    def _leave(self, feed: RunFeed) -> None:
        feed.followers -= 1
        if feed.followers == 0:
            self._feeds.pop(feed.run_id, None)
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
