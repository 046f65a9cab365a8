"""Which model names are served, by which engine, with which model. The store remembers; a restart brings all back.

``deployments/<name>.json`` says what a name answers with, ``deployments/history/<id>.json`` keeps each deployment.
Knows neither HTTP nor how an engine works.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from textmill.contracts.jobs import DeployJob, Output
from textmill.contracts.serving import Deployment
from textmill.errors import BadRequest, Draining, NotFound, TextmillError
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_inference.engine.port import Engine, ModelFolder, SwapKind
from textmill_inference.rollout.model_cache import fetch, prune, read_manifest

log = logging.getLogger(__name__)
MakeEngine = Callable[[str], Engine]
_PREFIX = "deployments/"
_HISTORY = "deployments/history/"


def deployment_key(name: str) -> str:
    return f"{_PREFIX}{name}.json"


class Deployments:
    """The served names. ``make_engine`` makes an engine for a name; ``base`` is always there and never replaced."""

    def __init__(
        self, store: ObjectStore, cache: Path, make_engine: MakeEngine, base_name: str, attached: Mapping[str, Engine]
    ) -> None:
        self._store = store
        self._cache = cache
        self._make_engine = make_engine
        self._base_name = base_name
        self._engines: dict[str, Engine] = dict(attached)
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._table = threading.Lock()

    # -- readers ---------------------------------------------------------------------------------------------------

    def engines(self) -> Mapping[str, Engine]:
        """A snapshot, never changed afterwards: the gateway reads it on each request without a lock."""
        return self._engines

    def stored(self) -> list[Deployment]:
        return [
            Deployment.model_validate_json(self._store.get(item.key))
            for item in self._store.list(_PREFIX)
            if not item.key.startswith(_HISTORY)
        ]

    def get(self, name: str) -> Deployment:
        """Raises ``NotFound``."""
        try:
            return Deployment.model_validate_json(self._store.get(deployment_key(name)))
        except NotFound as exc:
            raise NotFound(f"no deployment {name!r}; GET /v1/deployments lists them") from exc

    def check_base(self) -> None:
        """Raises ``TextmillError`` while the base model doesn't answer."""
        engine = self._engines.get(self._base_name)
        if engine is None or not engine.ready:
            why = engine.trouble if engine is not None else "not started"
            raise TextmillError(f"base model {self._base_name!r} doesn't answer: {why}")

    # -- changing what is served -----------------------------------------------------------------------------------

    def check_job(self, job: DeployJob) -> None:
        """Raises ``BadRequest`` for what can't be deployed, ``NotFound`` for a model that isn't published."""
        if job.name == self._base_name:
            raise BadRequest(f"{job.name!r} is the base model, which stays for comparison: deploy under another name")

    def deploy(self, job: DeployJob, ctx: JobContext) -> Output:
        """Serve the job's model under its name; returns when it answers. Doing it twice changes nothing."""
        self.check_job(job)
        manifest = read_manifest(ctx.store, job.model_id)

        def tick(fetched: int) -> None:
            ctx.raise_if_stopped()
            ctx.progress("fetching", fetched, unit="bytes")

        folder = fetch(ctx.store, manifest, self._cache, tick)
        ctx.progress("starting")
        began = time.monotonic()
        with self._changing:
            kind = self._serve(job.name, folder, ctx.stopping)
        if kind is None:
            ctx.raise_if_stopped()
            raise Draining("the service is shutting down")
        seconds = time.monotonic() - began
        fields = {"deployment": job.name, "model_id": job.model_id, "how": kind, "seconds": round(seconds, 2)}
        log.info("deployed", extra=fields)
        deployment = Deployment(
            name=job.name,
            deployment_id=job.deployment_id,
            model_id=job.model_id,
            parity=self._engines[job.name].parity,
        )
        self._store.put(deployment_key(job.name), deployment.to_json())
        self._prune()
        return Output(manifest_key=f"{_HISTORY}{job.deployment_id}.json", manifest=deployment.model_dump(mode="json"))

    def restore(self, base: ModelFolder | None) -> None:
        """Bring back the base model and all that the store remembers, one after the other. Blocks; own thread."""
        if base is not None and self._base_name not in self._engines:
            self._restore_one(self._base_name, lambda: base)
        while not self._stopping.is_set():
            try:
                wanted = self.stored()
                break
            except TextmillError as exc:
                log.warning("deployments not read yet", extra={"error": str(exc)})
                self._stopping.wait(2.0)
        else:
            return
        for deployment in wanted:
            if deployment.name not in self._engines:
                self._restore_one(deployment.name, partial(self._fetched, deployment))

    def stop(self) -> None:
        """End all engines; returns when no process of theirs is left."""
        self._stopping.set()
        threads = [threading.Thread(target=engine.stop) for engine in self._engines.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self, name: str, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        engine = self._engines.get(name)
        if engine is not None:
            return engine.serve(folder, stopping)
        engine = self._make_engine(name)
        kind: SwapKind | None = None
        try:
            kind = engine.serve(folder, stopping)
        finally:
            if kind is None:
                engine.stop()
        if kind is not None:
            self._list(engine)
        return kind

    def _list(self, engine: Engine) -> None:
        with self._table:
            self._engines = {**self._engines, engine.name: engine}

    def _fetched(self, deployment: Deployment) -> ModelFolder:
        return fetch(self._store, read_manifest(self._store, deployment.model_id), self._cache)

    def _restore_one(self, name: str, folder: Callable[[], ModelFolder]) -> None:
        """The engine is listed at once, so that requests wait for it instead of being told it doesn't exist."""
        engine = self._make_engine(name)
        self._list(engine)
        while not self._stopping.is_set():
            try:
                engine.serve(folder(), self._stopping)
                return
            except (TextmillError, OSError) as exc:
                log.warning("deployment not restored yet", extra={"deployment": name, "error": str(exc)})
                self._stopping.wait(5.0)

    def _prune(self) -> None:
        prune(self._cache, {deployment.model_id for deployment in self.stored()})
