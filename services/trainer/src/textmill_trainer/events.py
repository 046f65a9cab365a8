"""A run's steps and evaluations as events (see ``textmill.feeds``), read from its metrics. Knows no torch."""

import re

from textmill.contracts.runs import EvalMetrics, RunJob, StepMetrics
from textmill.errors import BadRequest, NotFound
from textmill.feeds import LOOK_EVERY_S, Event, Feeds, Position, Tail, frame
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.runstore import job_key
from textmill_trainer.stored import latest_metrics

_EVENT_ID = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?", re.ASCII)


def parse_event_id(text: str) -> Position:
    """Of a ``Last-Event-ID``. Raises ``BadRequest`` for what no event of ours had."""
    found = _EVENT_ID.fullmatch(text)
    if found is None:
        raise BadRequest(f"Last-Event-ID {text[:40]!r} is no id of these events: they are steps, like 40 or 40.1")
    return int(found[1]), int(found[2] or 0)


class RunTail(Tail):
    """A run's metrics. A position is a step, and which of that step's events: first the step, then its evaluations."""

    def __init__(self, store: ObjectStore, jobs: Jobs, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._jobs = jobs
        self._key = ""
        self._offset = 0
        self._last: Position = (-1, 0)

    def _read(self) -> list[Event]:
        try:
            _, key, size = latest_metrics(self._store, self.run_id)
        except NotFound:
            return []
        if key != self._key or size < self._offset:
            # A newer attempt, whose metrics start over.
            self._key, self._offset, self._last, self.restarted = key, 0, (-1, 0), True
        data = self._store.get_range(key, self._offset, size) if size > self._offset else b""
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [self._event(metric) for metric in parse_metrics(whole)]

    def _event(self, metric: StepMetrics | EvalMetrics) -> Event:
        step, order = metric.step, self._last[1] + 1 if metric.step == self._last[0] else 0
        self._last = step, order
        event_id = f"{step}.{order}" if order else str(step)
        return Event(self._last, frame(event_id, metric.kind, metric.model_dump_json()))

    def _ended(self) -> str | None:
        try:
            job_id = RunJob.model_validate_json(self._store.get(job_key(self.run_id))).job_id
        except NotFound as exc:
            raise NotFound(
                f"no run {self.run_id!r}, or nobody has begun on it yet: its job tells how far it is"
            ) from exc
        view = self._jobs.view("train", job_id)
        return view.state if view.finished else None


def run_feeds(store: ObjectStore, jobs: Jobs, every_s: float = LOOK_EVERY_S) -> Feeds:
    return Feeds(lambda run_id: RunTail(store, jobs, run_id), every_s)
