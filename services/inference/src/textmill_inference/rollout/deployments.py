"""Which model names are served, by which engine, with which model, and how new models go live.

The steps: a job brings a version up, beside the old one or in its place; the store is told; the route is switched; the
old version finishes its answers and ends. The store remembers; a restart brings all back. Knows neither HTTP nor how an
engine works.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from textmill.contracts.jobs import DeployJob, Output
from textmill.contracts.serving import Canary, Deployment, ModelVersion
from textmill.errors import BadRequest, Conflict, Draining, JobFailed, TextmillError
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_inference.engine.maker import EngineMaker
from textmill_inference.engine.port import Engine, ModelFolder, SwapKind
from textmill_inference.rollout import state as states
from textmill_inference.rollout.metrics import ROLLOUTS, TRIALS_ENDED
from textmill_inference.rollout.records import Records, history_key
from textmill_inference.rollout.routes import Route, Upstream
from textmill_inference.rollout.starter import Starter, end_quietly
from textmill_inference.rollout.table import SETTLE_S, Live, Served, Table, begin_trial

log = logging.getLogger(__name__)
Role = Literal["canary", "shadow"]


class Deployments:
    """The served names. ``base_name`` is always there and never replaced, as are ``attached`` engines (replicas)."""

    def __init__(
        self,
        store: ObjectStore,
        cache: Path,
        engines: EngineMaker,
        base_name: str,
        attached: Mapping[str, Sequence[Engine]],
        drain_s: float = 300.0,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.records = Records(store)
        self.table = Table(drain_s, settle_s)
        self.starter = Starter(store, cache, engines, self._host)
        self.base_name = base_name
        self.stopping = threading.Event()
        self._attached = frozenset(attached)
        for name, replicas in attached.items():
            served = self.table.named(name)
            served.stable = tuple(Live(None, Upstream(engine, name, name, name)) for engine in replicas)
        self.table.publish()

    # -- readers ---------------------------------------------------------------------------------------------------

    def routes(self) -> Mapping[str, Route]:
        """A snapshot, never changed afterwards: the gateway reads it on each request without a lock."""
        return self.table.routes()

    def check_base(self) -> None:
        """Raises ``TextmillError`` while the base model doesn't answer."""
        route = self.routes().get(self.base_name)
        if route is None or not any(upstream.ready for upstream in route.stable):
            why = route.stable[0].trouble if route is not None else "not started"
            raise TextmillError(f"base model {self.base_name!r} doesn't answer: {why}")

    def check_job(self, job: DeployJob) -> None:
        """Raises ``BadRequest`` for what can't be deployed."""
        if job.name == self.base_name:
            raise BadRequest(f"{job.name!r} is the base model, which stays for comparison: deploy under another name")
        if job.name in self._attached:
            raise BadRequest(f"{job.name!r} is served by engines that aren't ours: roll it out where they run")

    # -- a new version ---------------------------------------------------------------------------------------------

    def deploy(self, job: DeployJob, ctx: JobContext) -> Output:
        """Serve the job's model under its name, as it asks; returns when it answers. Twice is once.

        Raises:
            JobFailed: it can't be served; what was served before still is.
        """
        self.check_job(job)
        version = ModelVersion(deployment_id=job.deployment_id, model_id=job.model_id, unmerged=job.unmerged)

        def tick(fetched: int) -> None:
            ctx.raise_if_stopped()
            ctx.progress("fetching", fetched, unit="bytes")

        folder = self.starter.fetch(version, tick)
        ctx.progress("starting")
        began = time.monotonic()
        with self._changing(job.name, ctx) as served:
            done = self._roll_out(served, job, version, folder, ctx.stopping)
        if done is None:
            ctx.raise_if_stopped()
            raise Draining("the service is shutting down")
        state, kind = done
        seconds = round(time.monotonic() - began, 2)
        fields = {"deployment": job.name, "model_id": job.model_id, "how": kind, "seconds": seconds}
        log.info("deployed", extra=fields)
        ROLLOUTS.labels(kind).inc()
        self.starter.prune(states.model_ids(self.records.all()))
        return Output(manifest_key=history_key(job.deployment_id), manifest=state.model_dump(mode="json"))

    def _roll_out(
        self, served: Served, job: DeployJob, version: ModelVersion, folder: ModelFolder, stopping: threading.Event
    ) -> tuple[Deployment, SwapKind] | None:
        current = self.records.find(job.name)
        trial = states.of_job(job, version)
        if trial is not None:
            return self._try_out(served, current, trial, folder, stopping)
        if current is not None and current.canary is not None and current.deployment_id != version.deployment_id:
            raise JobFailed(f"{job.name!r} has a canary under way: promote or abort it first")
        old = served.stable[0] if served.stable else None
        done = self._bring_up(served, old, version, folder, stopping)
        if done is None:
            return None
        live, kind = done
        assert live.version is not None
        state = states.with_stable(current, job.name, live.version, job.rollback_from)
        self._switch(served, state, stable=live)
        return state, kind

    def _bring_up(
        self, served: Served, old: Live | None, version: ModelVersion, folder: ModelFolder, stopping: threading.Event
    ) -> tuple[Live, SwapKind] | None:
        """The version answers: in the old one's engine, or beside it."""
        if old is not None and old.version is not None and old.version.deployment_id == version.deployment_id:
            return (old, "unchanged") if self._is_up(old, folder, stopping) else None
        kind = self._in_place(old, version, folder, stopping)
        if kind is not None and old is not None:
            proven = version.model_copy(update={"parity": old.upstream.engine.parity})
            return Live(proven, old.upstream), kind
        started = None if stopping.is_set() else self._start(served, version, folder, stopping)
        if started is None:
            return None
        live, kind = started
        return live, "second_engine" if kind == "started" and old is not None else kind

    def _is_up(self, live: Live, folder: ModelFolder, stopping: threading.Event) -> bool:
        """Waits until what was brought up before answers again. Raises as ``Engine.serve``."""
        if live.is_adapter:
            live.upstream.engine.load_adapter(live.upstream.model, folder)
            return True
        return live.upstream.engine.serve(folder, stopping) is not None

    def _in_place(
        self, old: Live | None, version: ModelVersion, folder: ModelFolder, stopping: threading.Event
    ) -> SwapKind | None:
        """None if a second engine is to take over: of another geometry, or with answers under way that don't end."""
        if old is None or old.is_adapter or version.unmerged:
            return None
        engine = old.upstream.engine
        kind = engine.swap(folder, stopping) if engine.ready else engine.serve(folder, stopping)
        if kind is None and not stopping.is_set() and (why := self.starter.no_room(folder)):
            log.info("no second engine; restarting the one there is", extra={"deployment": engine.name, "reason": why})
            kind = engine.serve(folder, stopping)
        return kind

    def _try_out(
        self,
        served: Served,
        current: Deployment | None,
        trial: states.Trial,
        folder: ModelFolder,
        stopping: threading.Event,
    ) -> tuple[Deployment, SwapKind] | None:
        if current is None or not served.stable:
            raise JobFailed(f"{served.name!r} answers with nothing yet: deploy a version without a percentage first")
        there = getattr(current, _role(trial))
        known = (current.deployment_id, there.deployment_id if there is not None else "")
        if trial.deployment_id in known:
            return current, "unchanged"
        if not trial.unmerged and (why := self.starter.no_room(folder)):
            raise JobFailed(f"no room for a {_role(trial)} beside {served.name!r}: {why}")
        started = self._start(served, trial, folder, stopping)
        if started is None:
            return None
        live, kind = started
        assert live.version is not None
        proven = trial.model_copy(update={"parity": live.version.parity})
        self._switch(served, states.with_trial(self.counted(served, current), proven), trial=(proven, live))
        return self.records.get(served.name), kind

    def _start(
        self, served: Served, version: ModelVersion, folder: ModelFolder, stopping: threading.Event
    ) -> tuple[Live, SwapKind] | None:
        return self.starter.start(served.name, self.table.label(served.name), version, folder, stopping)

    def _switch(
        self,
        served: Served,
        state: Deployment,
        *,
        stable: Live | None = None,
        trial: tuple[states.Trial, Live] | None = None,
    ) -> None:
        """Tell the store, then the gateway; the version that is replaced leaves. A version not stored is not served."""
        new = stable or (trial[1] if trial is not None else None)
        known = {id(live.upstream) for _, live in served.versions()}
        try:
            self.records.save(state)
        except TextmillError:
            if new is not None and id(new.upstream) not in known:
                end_quietly(new)
            raise
        before = [live for _, live in served.versions()]
        if stable is not None:
            served.stable = (stable,)
        if trial is not None:
            begun = begin_trial(*trial, served.stable[0].upstream)
            setattr(served, _role(trial[0]), begun)
        self._publish(served, before)

    def _publish(self, served: Served, before: Sequence[Live]) -> None:
        self.table.publish()
        kept = {id(live.upstream) for _, live in served.versions()}
        for live in before:
            if id(live.upstream) not in kept:
                self.table.retire(live)

    # -- changing what is there ------------------------------------------------------------------------------------

    def promote(self, name: str, deployment_id: str | None = None) -> Deployment:
        """The canary answers all requests. Saying twice that ``deployment_id`` should is saying it once.

        Raises:
            Conflict: there is no such canary, or it doesn't answer now.
        """
        with self._settled(name) as (served, state):
            if deployment_id is not None and state.deployment_id == deployment_id:
                return state
            after = states.promoted(self.counted(served, state))
            canary = served.canary
            if deployment_id is not None and after.deployment_id != deployment_id:
                raise Conflict(f"the canary of {name!r} is deployment {after.deployment_id}, not {deployment_id}")
            if canary is None or not canary.live.upstream.ready:
                why = canary.live.upstream.trouble if canary is not None else "its engine isn't started yet"
                raise Conflict(f"the canary of {name!r} doesn't answer now: {why}")
            self.records.save(after)
            before = [live for _, live in served.versions()]
            served.stable, served.canary = (canary.live,), None
            self._publish(served, before)
        TRIALS_ENDED.labels(name, "canary", "promoted").inc()
        log.info("canary promoted", extra={"deployment": name, "model_id": after.model_id})
        return after

    def adjust(self, name: str, role: Role, percent: float) -> Deployment:
        """Another share of the requests for the canary or shadow. Raises ``Conflict`` if there is none."""
        with self._settled(name) as (served, state):
            trial: states.Trial | None = getattr(state, role)
            if trial is None:
                raise Conflict(f"{name!r} has no {role}: deploy one with {role}_percent")
            changed = trial.model_copy(update={"percent": percent})
            state = self.counted(served, state.model_copy(update={role: changed}))
            self.records.save(state)
            live = getattr(served, role)
            if live is not None:
                live.trial, live.tap.share = changed, percent / 100
            self.table.publish()
        return state

    def abort(self, name: str, role: Role | None = None, reason: str = "by its owner") -> Deployment:
        """End the canary, or the shadow if there is no canary; nothing happens if there is neither."""
        with self._settled(name) as (served, state):
            which: Role = role or ("canary" if state.canary is not None else "shadow")
            return self.take_back(served, state, which, "aborted", reason)

    def take_back(self, served: Served, state: Deployment, role: Role, outcome: str, reason: str) -> Deployment:
        """As ``abort``, for whoever holds the name's lock."""
        trial: states.Trial | None = getattr(self.counted(served, state), role)
        if trial is None:
            return state
        after = states.without_trial(state, trial, outcome, reason)
        self.records.save(after)
        before = [live for _, live in served.versions()]
        setattr(served, role, None)
        self._publish(served, before)
        TRIALS_ENDED.labels(served.name, role, outcome).inc()
        log.info("trial ended", extra={"deployment": served.name, "role": role, "outcome": outcome, "reason": reason})
        return after

    def rollback(self, name: str, deployment_id: str | None = None) -> DeployJob | None:
        """The job that brings the version before back; None if ``deployment_id`` doesn't answer any more.

        Raises:
            Conflict: a canary is under way.
            NotFound: no such name, or no version before.
        """
        state = self.records.get(name)
        if deployment_id is not None and state.deployment_id != deployment_id:
            return None
        return states.rollback_job(state)

    def undeploy(self, name: str) -> None:
        """Answer to the name no more; answers under way end. Raises ``NotFound`` or ``BadRequest``."""
        if name == self.base_name or name in self._attached:
            raise BadRequest(f"{name!r} belongs to the service's settings, and can't be dropped here")
        with self._settled(name) as (served, _):
            self.records.forget(name)
            before = [live for _, live in served.versions()]
            served.stable, served.canary, served.shadow = (), None, None
            self._publish(served, before)

    def stop(self) -> None:
        """End all engines; returns when no process of theirs is left."""
        self.stopping.set()
        self.table.stop()

    # -- what both sides need --------------------------------------------------------------------------------------

    def counted(self, served: Served, state: Deployment) -> Deployment:
        """The state with the figures of now."""
        update: dict[str, object] = {}
        for role, live in (("canary", served.canary), ("shadow", served.shadow)):
            trial: states.Trial | None = getattr(state, role)
            if live is not None and trial is not None and served.stable:
                update[role] = trial.model_copy(update={"figures": live.figures(served.stable[0].upstream)})
        return state.model_copy(update=update)

    @contextmanager
    def _settled(self, name: str) -> Iterator[tuple[Served, Deployment]]:
        """The name and its state, which nothing else changes meanwhile. Raises ``NotFound`` or ``Conflict``."""
        self.records.get(name)
        served = self.table.named(name)
        with self.table.changing(served):
            yield served, self.records.get(name)

    @contextmanager
    def _changing(self, name: str, ctx: JobContext) -> Iterator[Served]:
        """Waits its turn, and lets go when the job has to."""
        served = self.table.named(name)
        while not served.lock.acquire(timeout=0.5):
            ctx.raise_if_stopped()
        try:
            yield served
        finally:
            served.lock.release()

    def _host(self) -> Engine | None:
        served = self.table.named(self.base_name)
        return served.stable[0].upstream.engine if served.stable else None


def _role(trial: states.Trial) -> Role:
    return "canary" if isinstance(trial, Canary) else "shadow"
