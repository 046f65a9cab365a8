"""Judges canaries as they are used, and writes down now and then what was counted of trials. A thread of its own."""

import logging
import time

from textmill.contracts.serving import Canary, Deployment
from textmill.errors import TextmillError
from textmill_inference.rollout.deployments import Deployments
from textmill_inference.rollout.state import judge
from textmill_inference.rollout.table import Served

log = logging.getLogger(__name__)


class Watch:
    """Looks every ``every_s``; figures are stored every ``store_every_s`` when they have changed.

    A canary that doesn't answer for ``silence_s`` is taken back, too: the stable version answers in its place.
    """

    def __init__(
        self, deployments: Deployments, every_s: float = 1.0, store_every_s: float = 10.0, silence_s: float = 120.0
    ) -> None:
        self._deployments = deployments
        self._every_s = every_s
        self._store_every_s = store_every_s
        self._silence_s = silence_s
        self._stored_at = time.monotonic()
        self._silent_since: dict[str, float] = {}

    def run(self) -> None:
        """Blocks until the service stops."""
        while not self._deployments.stopping.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Once at all. A name that is being changed is left for the next time."""
        due = time.monotonic() - self._stored_at >= self._store_every_s
        if due:
            self._stored_at = time.monotonic()
        for served in self._deployments.table.all():
            if (served.canary or served.shadow) and served.lock.acquire(blocking=False):
                try:
                    self._look_at(served, due)
                except TextmillError as exc:
                    log.warning("trial not judged", extra={"deployment": served.name, "error": str(exc)})
                finally:
                    served.lock.release()

    def _look_at(self, served: Served, due: bool) -> None:
        reason = self._reason(served)
        if not reason and not due:
            return
        stored = self._deployments.records.get(served.name)
        state = self._deployments.counted(served, stored)
        if reason:
            self._deployments.take_back(served, state, "canary", "aborted_automatically", reason)
        elif _figures(state) != _figures(stored):
            self._deployments.records.save(state)

    def _reason(self, served: Served) -> str:
        """Why the canary is to be taken back; empty if it isn't. Asks neither store nor engine."""
        canary = served.canary
        if canary is None or not isinstance(canary.trial, Canary):
            return ""
        key = canary.trial.deployment_id
        if canary.live.upstream.ready:
            self._silent_since.pop(key, None)
            return judge(canary.trial, canary.figures(served.stable[0].upstream))
        now = time.monotonic()
        silent_s = now - self._silent_since.setdefault(key, now)
        if silent_s < self._silence_s:
            return ""
        return f"its engine didn't answer for {silent_s:.0f} s: {canary.live.upstream.trouble}"


def _figures(state: Deployment) -> tuple[object, object]:
    return (state.canary and state.canary.figures, state.shadow and state.shadow.figures)
