"""Brings a model version up: its files from the store, then an engine of its own, or its adapter on the base's engine.

Knows no route and no job: what it returns answers, and has passed the parity gate, but nobody is sent to it yet.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from textmill.contracts.serving import ModelVersion
from textmill.errors import BadRequest, DependencyDown, JobFailed, TextmillError
from textmill.store import ObjectStore
from textmill.weights import weights_sha256
from textmill_inference.engine.maker import EngineMaker
from textmill_inference.engine.port import Engine, ModelFolder, SwapKind
from textmill_inference.rollout.adapter_files import fetch_adapter
from textmill_inference.rollout.model_cache import Tick, fetch, prune, read_manifest
from textmill_inference.rollout.routes import Upstream
from textmill_inference.rollout.table import Live

log = logging.getLogger(__name__)


class Starter:
    """``host`` gives the base model's engine, None while there is none."""

    def __init__(
        self, store: ObjectStore, cache: Path, engines: EngineMaker, host: Callable[[], Engine | None]
    ) -> None:
        self._store = store
        self._cache = cache
        self._engines = engines
        self._host = host
        self._base_sha256: dict[Path, str] = {}

    def fetch(self, version: ModelVersion, tick: Tick = lambda size: None) -> ModelFolder:
        """The version's files, from the cache or the store.

        Raises:
            NotFound: no such model.
            JobFailed: the files aren't what was published, or it has no adapter for this base.
        DependencyDown: it wants the base's engine, which doesn't answer now.
        """
        manifest = read_manifest(self._store, version.model_id)
        if not version.unmerged:
            return fetch(self._store, manifest, self._cache, tick)
        self._check_base(version, manifest.lineage.base_sha256)
        return fetch_adapter(self._store, manifest, self._cache, tick)

    def engine(self, name: str, label: str) -> Engine:
        return self._engines.make(name, label)

    def no_room(self, folder: ModelFolder) -> str:
        return self._engines.no_room(folder.path)

    def start(
        self, name: str, label: str, version: ModelVersion, folder: ModelFolder, stopping: threading.Event
    ) -> tuple[Live, SwapKind] | None:
        """Returns when it answers; None if ``stopping`` was set first. After an error nothing of it runs.

        Raises:
            JobFailed: it can't be served.
            DependencyDown: the base's engine, which is to take the adapter, doesn't answer now.
        """
        if version.unmerged:
            return self._load(name, version, folder)
        engine = self._engines.make(name, label)
        kind: SwapKind | None = None
        try:
            kind = engine.serve(folder, stopping)
        finally:
            if kind is None:
                engine.stop()
        if kind is None:
            return None
        proven = version.model_copy(update={"parity": engine.parity})
        return Live(proven, Upstream(engine, name, name, label)), kind

    def adapter_upstream(self, name: str, version: ModelVersion) -> Upstream:
        """What leads to the adapter, loaded or not. Raises ``DependencyDown`` without an engine of the base model."""
        host = self._host()
        if host is None:
            raise DependencyDown("the base model's engine, which takes the adapters, isn't there yet")
        return Upstream(host, name, adapter_name(name, version))

    def prune(self, model_ids: set[str]) -> None:
        """Delete the files of all other models."""
        prune(self._cache, {name for model_id in model_ids for name in (model_id, f"{model_id}.adapter")})

    def _load(self, name: str, version: ModelVersion, folder: ModelFolder) -> tuple[Live, SwapKind]:
        upstream = self.adapter_upstream(name, version)
        try:
            parity = upstream.engine.load_adapter(upstream.model, folder)
        except BadRequest as exc:
            raise JobFailed(str(exc)) from exc
        return Live(version.model_copy(update={"parity": parity}), upstream), "adapter"

    def _check_base(self, version: ModelVersion, trained_on: str) -> None:
        host = self._host()
        if host is None or not host.ready:
            raise DependencyDown("the base model's engine, which takes the adapters, doesn't answer now")
        if host.folder is None:
            raise JobFailed(
                "adapters run on the base model's engine, and that isn't ours here: deploy the merged model instead"
            )
        path = host.folder.path
        if path not in self._base_sha256:
            self._base_sha256[path] = weights_sha256(path)
        if self._base_sha256[path] != trained_on:
            raise JobFailed(
                f"the adapter of {version.model_id} was trained on other weights (SHA-256 {trained_on[:12]}...) than "
                f"those of the base model served here ({self._base_sha256[path][:12]}...): deploy the merged model"
            )


def adapter_name(name: str, version: ModelVersion) -> str:
    """What the engine calls it. A new version has a new one, so that answers of the old one end as they began."""
    return f"{name}@{version.deployment_id[-12:]}"


def end_quietly(live: Live) -> None:
    """After an error that matters more than another one."""
    try:
        live.end()
    except TextmillError as exc:
        log.warning("version not ended", extra={"name_served": live.upstream.name, "error": str(exc)})
