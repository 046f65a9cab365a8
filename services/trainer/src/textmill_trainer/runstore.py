"""A run's objects in the store: checkpoints, metrics, and what is published at the end.

A checkpoint's files go first, under a prefix of their own; a small pointer is written last. So a worker that is
killed at any moment leaves the old checkpoint or the new one, whole. Each attempt has its own pointer and sweeps only
what attempts up to its own have left, so a worker that was frozen and wakes late can't harm its successor. Knows
nothing of torch or of the training process.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from textmill.contracts.base import StoredContract, new_id
from textmill.contracts.runs import RunJob
from textmill.errors import NotFound
from textmill.store import ObjectStore

_CHUNK_BYTES = 1 << 20
_POINTER = "pointer.json"


class CheckpointPointer(StoredContract):
    """The newest whole checkpoint of one attempt: ``files`` below ``prefix``."""

    attempt: int
    step: int
    prefix: str
    files: tuple[str, ...]


def job_key(run_id: str) -> str:
    """Where a run says whose it is, from its first attempt on."""
    return f"runs/{run_id}/job.json"


class RunStore:
    """The objects below ``runs/<run_id>/``, for one attempt."""

    def __init__(self, store: ObjectStore, run_id: str, attempt: int) -> None:
        self._store = store
        self._run_id = run_id
        self._attempt = attempt
        self._checkpoints = f"runs/{run_id}/checkpoints/"
        self.prefix = f"runs/{run_id}/attempt-{attempt}/"

    @property
    def metrics_key(self) -> str:
        return f"{self.prefix}metrics.jsonl"

    def name_job(self, job_id: str) -> None:
        """For readers who have the run and want to know how its job is doing."""
        self._store.put(job_key(self._run_id), RunJob(run_id=self._run_id, job_id=job_id).to_json())

    def save_checkpoint(self, checkpoint: Path, step: int) -> None:
        """Upload a checkpoint folder, point to it, then sweep the ones before it."""
        prefix = f"{self._attempt_prefix(self._attempt)}{new_id('ckp')}/"
        files = upload_folder(self._store, checkpoint, prefix)
        pointer = CheckpointPointer(attempt=self._attempt, step=step, prefix=prefix, files=tuple(sorted(files)))
        pointer_key = self._attempt_prefix(self._attempt) + _POINTER
        self._store.put(pointer_key, pointer.to_json())
        for attempt in range(1, self._attempt + 1):
            self._sweep(self._attempt_prefix(attempt), keep=prefix, keep_key=pointer_key)

    def load_checkpoint(self, folder: Path) -> CheckpointPointer | None:
        """Download the newest whole checkpoint of any attempt into ``folder/step-<n>``; None if there is none."""
        for pointer in sorted(self._pointers(), key=lambda p: p.step, reverse=True):
            target = folder / f"step-{pointer.step:08d}"
            try:
                for name in pointer.files:
                    download(self._store, pointer.prefix + name, target / name)
                return pointer
            except NotFound:
                # Swept by another attempt since its pointer was read: the next best will do.
                shutil.rmtree(target, ignore_errors=True)
        return None

    def _attempt_prefix(self, attempt: int) -> str:
        return f"{self._checkpoints}attempt-{attempt}/"

    def _pointers(self) -> Iterator[CheckpointPointer]:
        for item in self._store.list(self._checkpoints):
            if not item.key.endswith("/" + _POINTER):
                continue
            try:
                yield CheckpointPointer.model_validate_json(self._store.get(item.key))
            except (NotFound, ValidationError):
                continue

    def _sweep(self, prefix: str, keep: str | None = None, keep_key: str | None = None) -> None:
        # Pointers first: one that stands names files that are there.
        keys = [item.key for item in self._store.list(prefix)]
        for key in sorted(keys, key=lambda k: not k.endswith("/" + _POINTER)):
            if key != keep_key and not (keep and key.startswith(keep)):
                self._store.delete(key)


def upload_folder(store: ObjectStore, folder: Path, prefix: str) -> dict[str, str]:
    """Stream all files of a flat folder below ``prefix``. Returns each file's SHA-256 in hex by its name."""
    digests: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest = hashlib.sha256()
        store.put_stream(prefix + path.name, _hashed(chunks(path), digest))
        digests[path.name] = digest.hexdigest()
    return digests


def _hashed(chunks: Iterable[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def download(store: ObjectStore, key: str, path: Path) -> None:
    """Stream an object into a file. Raises ``NotFound``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for chunk in store.stream(key, _CHUNK_BYTES):
            file.write(chunk)


def chunks(path: Path) -> Iterator[bytes]:
    """A file in parts of a megabyte."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
