"""A load test's events: written to the store as it runs, and read back by any process (see ``textmill.feeds``).

Events lie in chunks of a few hundred lines, so that a test of hours is neither one growing object nor an object a
second. An attempt that follows another has its own part; ids are ``part.number``.
"""

import re
from contextlib import suppress

from textmill.contracts.loadoptions import LoadtestEvent, LoadtestOwner
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.feeds import LOOK_EVERY_S, Event, Feeds, Position, Tail, frame
from textmill.jobs import Jobs
from textmill.store import ObjectStore

CHUNK = 256
_EVENT_ID = re.compile(r"(\d{1,6})\.(\d{1,9})", re.ASCII)


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


class EventTail(Tail):
    """A test's events. A position is a part, and the event's number in it."""

    def __init__(self, store: ObjectStore, jobs: Jobs, loadtest_id: str) -> None:
        self.loadtest_id = loadtest_id
        self._store = store
        self._jobs = jobs
        self._key = ""
        self._lines = 0
        self._number = -1

    def _read(self) -> list[Event]:
        found: list[Event] = []
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
                part = _part_of(info.key)
                found.append(Event((part, self._number), frame(f"{part}.{self._number}", event.kind, event.line())))
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


def event_feeds(store: ObjectStore, jobs: Jobs, every_s: float = LOOK_EVERY_S) -> Feeds:
    return Feeds(lambda loadtest_id: EventTail(store, jobs, loadtest_id), every_s)
