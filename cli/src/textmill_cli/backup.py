"""The whole store as a folder, and back. Taken while everything runs, a backup is what a crash would have left.

The folder has each content once, under its SHA-256, and an index for each backup: so a later one adds what is new. The
order makes it consistent: what commits (manifests, results, deployments) is listed before what it refers to, which was
written earlier and so is listed too; open markers are taken before and after, so that no job is forgotten. A job that
ended meanwhile may be worked on once more after a restore, with the same outcome.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from textmill.contracts.base import utc_now
from textmill.errors import BadRequest, Conflict, NotFound
from textmill.store import ObjectStore

_COMMITS = ("manifest.json", "result.json", "report.json")
_NEVER_CHANGED = ("raw/", "models/")
"""Below these a key's bytes stay as they were first written; of the same size, they needn't be read again."""
_PASSING = ("probe/",)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Summary:
    """``new_bytes`` is what the folder has grown by."""

    index: str
    objects: int
    size_bytes: int
    new_bytes: int


def back_up(store: ObjectStore, folder: Path, tell: Tell = lambda line: None) -> Summary:
    """Raises ``DependencyDown``; then the backups made before are as they were."""
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    known = {entry.key: entry for entry in _latest(folder)}
    entries: dict[str, Entry] = {}
    new_bytes = 0
    for key in _keys(store):
        entry, added = _take(store, folder, key, known.get(key))
        if entry is not None:
            entries[key] = entry
            new_bytes += added
            if len(entries) % 1_000 == 0:
                tell(f"{len(entries)} objects, {new_bytes / 1e6:.0f} MB new")
    name = _write_index(folder, utc_now(), entries)
    return Summary(name, len(entries), sum(e.size_bytes for e in entries.values()), new_bytes)


def restore(store: ObjectStore, folder: Path, index: str | None = None, tell: Tell = lambda line: None) -> int:
    """Put a backup, by default the newest, into an empty store. Returns the number of objects.

    Raises:
        BadRequest: there is no such backup, or its files are damaged; nothing was written.
        Conflict: the store isn't empty.
    """
    entries = _read_index(folder, index)
    held = next((info.key for info in store.list("") if not info.key.startswith(_PASSING)), None)
    if held is not None:
        raise Conflict(f"the store holds {held!r} already: restore into an empty bucket (TEXTMILL_STORE_BUCKET)")
    verify(folder, index)
    for number, entry in enumerate(sorted(entries, key=lambda entry: _rank(entry.key)), 1):
        store.put_stream(entry.key, _chunks(_path(folder, entry.sha256)))
        if number % 1_000 == 0:
            tell(f"{number} of {len(entries)} objects")
    return len(entries)


def verify(folder: Path, index: str | None = None) -> int:
    """Read a backup whole and compare digests. Returns the number of objects. Raises ``BadRequest`` for damage."""
    entries = _read_index(folder, index)
    for sha256 in {entry.sha256 for entry in entries}:
        path = _path(folder, sha256)
        if not path.exists() or _digest(path) != sha256:
            key = next(entry.key for entry in entries if entry.sha256 == sha256)
            raise BadRequest(f"the backup's copy of {key!r} ({path}) is missing or damaged: take another backup")
    return len(entries)


def indexes(folder: Path) -> list[str]:
    """The backups in a folder, oldest first."""
    return sorted(path.stem for path in folder.glob("index-*.jsonl"))


def _keys(store: ObjectStore) -> Iterator[str]:
    """Every key, in an order that makes the copy consistent (see above). Some may be gone when they are read."""
    yield from [info.key for info in store.list("open/")]
    commits = [info.key for info in store.list("") if _is_commit(info.key)]
    yield from (
        info.key for info in store.list("")
        if not _is_commit(info.key) and not info.key.startswith(("open/", *_PASSING))
    )  # fmt: skip
    yield from commits
    yield from [info.key for info in store.list("open/")]


def _is_commit(key: str) -> bool:
    return key.endswith(_COMMITS) or key.startswith("deployments/")


def _rank(key: str) -> tuple[int, str]:
    """A restore that breaks off leaves no manifest without what it refers to."""
    return (2 if key.startswith("open/") else int(_is_commit(key)), key)


def _take(store: ObjectStore, folder: Path, key: str, known: Entry | None) -> tuple[Entry | None, int]:
    """The entry, None if the object is gone by now; and the bytes that the folder has grown by."""
    if known is not None and key.startswith(_NEVER_CHANGED) and _path(folder, known.sha256).exists():
        return known, 0
    partial, digest, size = folder / f".partial-{os.getpid()}", hashlib.sha256(), 0
    try:
        with partial.open("wb") as file:
            for chunk in store.stream(key):
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        target = _path(folder, digest.hexdigest())
        if target.exists():
            return Entry(key, size, digest.hexdigest()), 0
        target.parent.mkdir(exist_ok=True)
        partial.rename(target)
        return Entry(key, size, digest.hexdigest()), size
    except NotFound:
        return None, 0
    finally:
        partial.unlink(missing_ok=True)


def _path(folder: Path, sha256: str) -> Path:
    return folder / "objects" / sha256[:2] / sha256


def _write_index(folder: Path, now: datetime, entries: dict[str, Entry]) -> str:
    name = f"index-{now:%Y%m%dT%H%M%S}{now.microsecond:06d}"
    partial = folder / f".{name}"
    with partial.open("w", encoding="utf-8") as file:
        for entry in entries.values():
            file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
    partial.rename(folder / f"{name}.jsonl")
    return name


def _latest(folder: Path) -> list[Entry]:
    return _read_index(folder, None) if indexes(folder) else []


def _read_index(folder: Path, index: str | None) -> list[Entry]:
    found = indexes(folder)
    name = index or (found[-1] if found else "")
    if name not in found:
        raise BadRequest(f"no backup {name!r} in {folder}; there are: {', '.join(found) or 'none'}")
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [Entry(**json.loads(line)) for line in file]


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
