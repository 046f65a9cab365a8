"""A model's LoRA adapter as a local folder, in peft's format, with the model's parity probe beside it."""

import hashlib
import os
import shutil
from pathlib import Path

from textmill.contracts.gates import PARITY_FILE
from textmill.contracts.runs import ModelManifest
from textmill.errors import JobFailed
from textmill.store import ObjectStore
from textmill_inference.engine.port import ModelFolder
from textmill_inference.rollout.model_cache import Tick, safe

_NEEDED = ("adapter_config.json", "adapter_model.safetensors")


def fetch_adapter(
    store: ObjectStore, manifest: ModelManifest, cache: Path, tick: Tick = lambda size: None
) -> ModelFolder:
    """From the cache or the store. Raises ``JobFailed`` if the model has none, or it isn't whole."""
    if not manifest.adapter_prefix:
        raise JobFailed(f"model {manifest.model_id} has no adapter, all its weights were trained: deploy it merged")
    target = cache / f"{manifest.model_id}.adapter"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{target.name}.{os.getpid()}"
        try:
            _download(store, manifest, manifest.adapter_prefix.rstrip("/") + "/", partial, tick)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ModelFolder(target, manifest.model_id)


def _download(store: ObjectStore, manifest: ModelManifest, prefix: str, folder: Path, tick: Tick) -> None:
    """Adapters are published without digests: their sizes are held to the store's list, and the gate does the rest."""
    shutil.rmtree(folder, ignore_errors=True)
    found = {info.key.removeprefix(prefix): info.size_bytes for info in store.list(prefix)}
    if missing := [name for name in _NEEDED if name not in found]:
        raise JobFailed(f"model {manifest.model_id} has no {missing[0]} under {prefix}: train it again")
    fetched = 0
    for name, size in found.items():
        path = folder / safe(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in store.stream(prefix + name):
                file.write(chunk)
                fetched += len(chunk)
                tick(fetched)
        if path.stat().st_size != size:
            raise JobFailed(f"{name} of the adapter of {manifest.model_id} was cut off: deploy it again")
    _probe(store, manifest, folder)


def _probe(store: ObjectStore, manifest: ModelManifest, folder: Path) -> None:
    """The merged model's probe holds its adapter, too. Models without one are older."""
    sha256 = manifest.files.get(PARITY_FILE)
    if sha256 is None:
        return
    data = store.get(f"{manifest.prefix.rstrip('/')}/{PARITY_FILE}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise JobFailed(f"{PARITY_FILE} of model {manifest.model_id} is not what was published: train it again")
    (folder / PARITY_FILE).write_bytes(data)
