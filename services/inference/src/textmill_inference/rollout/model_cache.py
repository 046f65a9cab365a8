"""Published models as local folders: fetched from the store once, verified, complete or not there at all."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from textmill.contracts.runs import ModelManifest
from textmill.errors import JobFailed, NotFound
from textmill.store import ObjectStore
from textmill_inference.engine.port import ModelFolder

log = logging.getLogger(__name__)
Tick = Callable[[int], None]
"""Called with the bytes fetched so far; may raise to stop."""


def read_manifest(store: ObjectStore, model_id: str) -> ModelManifest:
    """Raises ``NotFound``."""
    try:
        return ModelManifest.model_validate_json(store.get(f"models/{model_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no model {model_id}: GET /v1/models of the trainer lists the published ones") from exc


def fetch(store: ObjectStore, manifest: ModelManifest, cache: Path, tick: Tick = lambda size: None) -> ModelFolder:
    """The model's folder, from the cache or the store. ``manifest.files`` maps file names to SHA-256 digests.

    Raises:
        JobFailed: what the store holds isn't what was published.
    """
    target = cache / manifest.model_id
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{manifest.model_id}.{os.getpid()}"
        try:
            _download(store, manifest, partial, tick)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ModelFolder(target, manifest.model_id)


def prune(cache: Path, keep: Collection[str]) -> None:
    """Delete the folders of all other models: each is as large as the model, and can be fetched again.

    What is being fetched by this process stays.
    """
    for folder in cache.iterdir() if cache.is_dir() else ():
        fetching = folder.name.startswith(".") and folder.name.endswith(f".{os.getpid()}")
        if folder.is_dir() and folder.name not in keep and not fetching:
            log.info("model folder dropped", extra={"folder": folder.name})
            shutil.rmtree(folder, ignore_errors=True)


def _download(store: ObjectStore, manifest: ModelManifest, folder: Path, tick: Tick) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    fetched = 0
    for name, sha256 in manifest.files.items():
        path = folder / safe(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in store.stream(f"{manifest.prefix.rstrip('/')}/{name}"):
                digest.update(chunk)
                file.write(chunk)
                fetched += len(chunk)
                tick(fetched)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise JobFailed(
                f"{name} of model {manifest.model_id} has SHA-256 {digest.hexdigest()}, published was {sha256}: "
                "the store's copy is damaged; train or publish the model again"
            )


def safe(name: str) -> PurePosixPath:
    """A published file's name as a path below the model's folder. Raises ``JobFailed`` if it leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise JobFailed(f"model file name {name!r} leaves the model's folder")
    return path
