"""Keeps a run's side files in the store while it goes on: its reports, its records' losses, its TensorBoard events.

What is in the store is overwritten as the file changes, below the attempt's own prefix; the metrics and checkpoints
have ways of their own. Knows nothing of what is in the files. No torch.
"""

from collections.abc import Iterator
from pathlib import Path

from textmill.store import ObjectStore
from textmill_trainer import watch
from textmill_trainer.runstore import chunks
from textmill_trainer.workfolder import WorkFolder

_SMALL_BYTES = 1 << 20
_GROWN = 1.1
"""A larger file is sent again once it has grown by a tenth, so all its uploads together are about eleven times its
size, however long the run."""


class Mirror:
    """Uploads what has changed since it was last asked. One for each attempt."""

    def __init__(self, folder: WorkFolder, store: ObjectStore, prefix: str) -> None:
        self._folder = folder
        self._store = store
        self._prefix = prefix
        self._sent: dict[str, tuple[int, int, int]] = {}

    def send(self, last: bool = False) -> None:
        """``last`` sends all that differs, however little. Raises ``DependencyDown``; calling again is then right."""
        for path in self._files():
            name = path.relative_to(self._folder.root).as_posix()
            try:
                seen = _version(path)
                if self._is_due(name, seen, last):
                    self._store.put_stream(self._prefix + name, chunks(path))
                    self._sent[name] = seen
                    watch.observe_report(path)
            except FileNotFoundError:
                continue  # replaced or removed since it was listed

    def _files(self) -> Iterator[Path]:
        if self._folder.record_losses.exists():
            yield self._folder.record_losses
        yield from sorted(p for p in self._folder.reports.glob("*.json") if not p.name.startswith("."))
        yield from sorted(p for p in self._folder.tensorboard.glob("*") if p.is_file())

    def _is_due(self, name: str, seen: tuple[int, int, int], last: bool) -> bool:
        sent = self._sent.get(name)
        if sent is None or seen == sent:
            return sent is None
        (_, size, inode), (_, sent_size, sent_inode) = seen, sent
        return last or inode != sent_inode or size <= _SMALL_BYTES or size >= _GROWN * sent_size


def _version(path: Path) -> tuple[int, int, int]:
    """What changes when the file does: a file replaced by rename has another inode, one appended to another size."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
