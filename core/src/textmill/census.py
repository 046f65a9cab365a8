"""Counts the open jobs when Prometheus asks, so that the figure is right while every worker is busy, or none is there.

Scaling hangs on it: a queue that only its workers measure is invisible from the moment they all work. Knows no HTTP.
"""

import logging
import threading
import time
from collections.abc import Sequence

from textmill.errors import TextmillError
from textmill.jobs import Jobs
from textmill.telemetry import JOBS_OLDEST_SECONDS, JOBS_OPEN

log = logging.getLogger(__name__)


class Census:
    """Looks at most every ``every_s``; a store that hangs delays a scrape by ``wait_s`` and no more."""

    def __init__(self, jobs: Jobs, kinds: Sequence[str], every_s: float = 5.0, wait_s: float = 1.0) -> None:
        self._jobs = jobs
        self._kinds = kinds
        self._every_s = every_s
        self._wait_s = wait_s
        self._looked_at = float("-inf")
        self._looking: threading.Thread | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Bring the gauges up to date, if that is quickly done; otherwise they keep what was last known."""
        with self._lock:
            busy = self._looking is not None and self._looking.is_alive()
            if busy or time.monotonic() - self._looked_at < self._every_s:
                return
            self._looking = threading.Thread(target=self._look, name="census", daemon=True)
            self._looking.start()
            looking = self._looking
        looking.join(self._wait_s)

    def _look(self) -> None:
        try:
            for kind in self._kinds:
                count, oldest_s = self._jobs.open_since(kind)
                JOBS_OPEN.labels(kind).set(count)
                JOBS_OLDEST_SECONDS.labels(kind).set(oldest_s)
        except TextmillError as exc:
            log.info("open jobs not counted", extra={"error": str(exc)})
        self._looked_at = time.monotonic()
