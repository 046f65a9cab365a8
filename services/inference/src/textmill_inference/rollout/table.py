"""The names that are served now, each with its versions, as the gateway's routes; and the versions that are leaving.

Knows engines, and neither the store nor jobs.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from textmill.contracts.serving import ModelVersion, TrialFigures
from textmill.errors import Conflict, TextmillError
from textmill_inference.rollout.metrics import CUT_OFF
from textmill_inference.rollout.routes import Route, ShadowTap, Upstream
from textmill_inference.rollout.state import Trial
from textmill_inference.rollout.tally import Counts, compare

log = logging.getLogger(__name__)
SETTLE_S = 0.5
"""A request that read the old route just before it was replaced has been counted by then."""


@dataclass(eq=False)
class Live:
    """A version and what runs it. ``version`` is None for the base model and for engines that aren't ours."""

    version: ModelVersion | None
    upstream: Upstream

    @property
    def is_adapter(self) -> bool:
        return self.upstream.model != self.upstream.engine.name

    def end(self) -> None:
        """An adapter leaves its engine; an engine of its own ends."""
        if self.is_adapter:
            self.upstream.engine.unload_adapter(self.upstream.model)
        else:
            self.upstream.engine.stop()


@dataclass(eq=False)
class LiveTrial:
    """A canary or a shadow. ``since`` is what had been counted of the stable version when it began here, ``carried``
    what had been counted before the service was restarted."""

    trial: Trial
    live: Live
    beside: Upstream
    since: Counts
    tap: ShadowTap
    carried: TrialFigures = field(default_factory=TrialFigures)

    def figures(self, stable: Upstream) -> TrialFigures:
        """``stable`` may be another than at the beginning; then all of its requests count."""
        since = self.since if stable is self.beside else Counts()
        return compare(
            Counts.of(self.carried.trial).plus(self.live.upstream.tally.counts),
            Counts.of(self.carried.stable).plus(stable.tally.counts.minus(since)),
            self.carried.skipped + self.tap.skipped,
        )


def begin_trial(trial: Trial, live: Live, stable: Upstream) -> LiveTrial:
    """``trial.figures`` are carried on."""
    tap = ShadowTap(live.upstream, trial.percent / 100)
    return LiveTrial(trial, live, stable, stable.tally.counts, tap, trial.figures)


@dataclass(eq=False)
class Served:
    """One name. Whoever changes it holds ``lock``; the gateway reads ``route()`` as it was last published."""

    name: str
    stable: tuple[Live, ...] = ()
    canary: LiveTrial | None = None
    shadow: LiveTrial | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def route(self) -> Route | None:
        if not self.stable:
            return None
        canary, shadow = self.canary, self.shadow
        return Route(
            stable=tuple(live.upstream for live in self.stable),
            canary=canary.live.upstream if canary else None,
            canary_share=canary.trial.percent / 100 if canary else 0.0,
            tap=shadow.tap if shadow else None,
        )

    def versions(self) -> Iterator[tuple[str, Live]]:
        yield from (("stable", live) for live in self.stable)
        for role, trial in (("canary", self.canary), ("shadow", self.shadow)):
            if trial is not None:
                yield role, trial.live


class Table:
    """``drain_s`` is how long a version that was replaced may finish its answers."""

    def __init__(self, drain_s: float, settle_s: float = SETTLE_S) -> None:
        self._drain_s = drain_s
        self._settle_s = settle_s
        self._served: dict[str, Served] = {}
        self._routes: Mapping[str, Route] = {}
        self._leaving: list[Live] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def routes(self) -> Mapping[str, Route]:
        """A snapshot, never changed afterwards."""
        return self._routes

    def named(self, name: str) -> Served:
        """The name's entry, made if there is none. It is listed once it has a stable version."""
        with self._lock:
            return self._served.setdefault(name, Served(name))

    def all(self) -> list[Served]:
        with self._lock:
            return list(self._served.values())

    def publish(self) -> None:
        """Let the gateway see what has changed."""
        with self._lock:
            found = {name: served.route() for name, served in self._served.items()}
            self._routes = {name: route for name, route in found.items() if route is not None}

    @contextmanager
    def changing(self, served: Served, wait_s: float = 1.0) -> Iterator[None]:
        """Raises ``Conflict`` while something else changes the name."""
        if not served.lock.acquire(timeout=wait_s):
            raise Conflict(f"another change of {served.name!r} is under way: ask again when its job has ended")
        try:
            yield
        finally:
            served.lock.release()

    def label(self, name: str) -> str:
        """A label for one more engine of this name; free again when its engine has ended."""
        with self._lock:
            lives = [live for served in self._served.values() for _, live in served.versions()] + self._leaving
        used = {live.upstream.label for live in lives}
        number, label = 1, name
        while label in used:
            number += 1
            label = f"{name}#{number}"
        return label

    def retire(self, live: Live) -> None:
        """Let its answers end, then end it; returns at once. It must be in no published route any more."""
        with self._lock:
            self._leaving.append(live)
        threading.Thread(target=self._see_off, args=(live,), name=f"drain-{live.upstream.name}", daemon=True).start()

    def leaving(self, name: str) -> list[Live]:
        with self._lock:
            return [live for live in self._leaving if live.upstream.name == name]

    def stop(self) -> None:
        """End all engines at once; returns when no process of theirs is left."""
        self._stopping.set()
        with self._lock:
            lives = [live for served in self._served.values() for _, live in served.versions()] + self._leaving
        engines = {id(live.upstream.engine): live.upstream.engine for live in lives}
        threads = [threading.Thread(target=engine.stop) for engine in engines.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _see_off(self, live: Live) -> None:
        deadline = time.monotonic() + self._drain_s
        self._stopping.wait(self._settle_s)
        while live.upstream.in_flight > 0 and time.monotonic() < deadline and not self._stopping.is_set():
            self._stopping.wait(0.05)
        CUT_OFF.labels(live.upstream.name).inc(live.upstream.in_flight)
        fields = {"name_served": live.upstream.name, "model": live.upstream.model, "cut_off": live.upstream.in_flight}
        try:
            live.end()
            log.info("version drained", extra=fields)
        except TextmillError as exc:
            log.warning("version not ended", extra={**fields, "error": str(exc)})
        with self._lock:
            self._leaving.remove(live)
