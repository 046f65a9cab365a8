"""Brings back what the store remembers after a restart of the service: base model, stable versions, then trials."""

import logging
from collections.abc import Callable

from textmill.contracts.serving import Deployment
from textmill.errors import TextmillError
from textmill_inference.engine.port import ModelFolder
from textmill_inference.rollout.deployments import Deployments, Role
from textmill_inference.rollout.routes import Upstream
from textmill_inference.rollout.state import Trial, stable_of
from textmill_inference.rollout.table import Live, Served, begin_trial

log = logging.getLogger(__name__)
Step = Callable[[], bool]
"""True when it is done, or is not needed any more; False if it has to be tried again."""


class Restorer:
    """One name that can't be restored holds up no other: it is tried again after all of them, ``again_s`` later."""

    def __init__(self, deployments: Deployments, base: ModelFolder | None, again_s: float = 5.0) -> None:
        self._deployments = deployments
        self._table = deployments.table
        self._base = base
        self._again_s = again_s
        self._stopping = deployments.stopping
        self._steps: list[Step] = []
        self._told: dict[Step, str] = {}

    def run(self) -> None:
        """Blocks until all is back, or the service stops: it wants a thread of its own."""
        self._steps = [self._list_all]
        if self._base is not None and self._deployments.base_name not in self._deployments.routes():
            self._steps.append(self._base_step(self._base))
        while self._steps and not self._stopping.is_set():
            steps, self._steps = self._steps, []
            again = [step for step in steps if not self._stopping.is_set() and not self._done(step)]
            if again and not self._steps:
                self._stopping.wait(self._again_s)
            self._steps = [*self._steps, *again]

    def _done(self, step: Step) -> bool:
        try:
            return step()
        except (TextmillError, OSError) as exc:
            if self._told.get(step) != str(exc):
                log.warning("not restored yet", extra={"error": str(exc)})
            self._told[step] = str(exc)
            return False

    def _base_step(self, folder: ModelFolder) -> Step:
        served = self._table.named(self._deployments.base_name)
        self._list(served, Live(None, self._own_upstream(served.name)))
        return lambda: served.stable[0].upstream.engine.serve(folder, self._stopping) is not None

    def _list_all(self) -> bool:
        """Names first, so that requests wait for them instead of being told that they don't exist."""
        trials: list[Step] = []
        for state in self._deployments.records.all():
            served = self._table.named(state.name)
            if not served.stable:
                self._steps.append(self._stable_step(served, state))
                trials += [self._trial_step(served, role) for role in ("canary", "shadow")]
        self._steps += trials
        return True

    def _stable_step(self, served: Served, state: Deployment) -> Step:
        version = stable_of(state)
        starter = self._deployments.starter
        upstream = (
            starter.adapter_upstream(served.name, version) if version.unmerged else self._own_upstream(served.name)
        )
        live = Live(version, upstream)
        self._list(served, live)

        def step() -> bool:
            with served.lock:
                if served.stable != (live,):
                    return True  # a deployment came first
                folder = starter.fetch(version)
                if live.is_adapter:
                    upstream.engine.load_adapter(upstream.model, folder)
                    return True
                return upstream.engine.serve(folder, self._stopping) is not None

        return step

    def _trial_step(self, served: Served, role: Role) -> Step:
        def step() -> bool:
            with served.lock:
                state = self._deployments.records.find(served.name)
                trial: Trial | None = getattr(state, role) if state is not None else None
                if trial is None or getattr(served, role) is not None or not served.stable:
                    return True
                return self._start_trial(served, role, trial)

        return step

    def _start_trial(self, served: Served, role: Role, trial: Trial) -> bool:
        starter = self._deployments.starter
        folder = starter.fetch(trial)
        label = self._table.label(served.name)
        started = starter.start(served.name, label, trial, folder, self._stopping)
        if started is None:
            return False
        setattr(served, role, begin_trial(trial, started[0], served.stable[0].upstream))
        self._table.publish()
        log.info("trial restored", extra={"deployment": served.name, "role": role})
        return True

    def _own_upstream(self, name: str) -> Upstream:
        label = self._table.label(name)
        return Upstream(self._deployments.starter.engine(name, label), name, name, label)

    def _list(self, served: Served, live: Live) -> None:
        served.stable = (live,)
        self._table.publish()
