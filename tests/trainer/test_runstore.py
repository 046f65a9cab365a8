"""Checkpoints in the store: whole or not there, whoever is killed when."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from textmill.store import MemoryStore
from textmill_trainer.runstore import RunStore

RUN = "run_" + "1" * 32


class Killed(BaseException):
    pass


class MortalStore(MemoryStore):
    """Dies at its n-th write or delete, before it does it."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = 10_000

    def _pay(self) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1

    def put(self, key: str, data: bytes) -> None:
        self._pay()
        super().put(key, data)

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        self._pay()
        data = b"".join(chunks)
        MemoryStore.put(self, key, data)
        return len(data)

    def delete(self, key: str) -> None:
        self._pay()
        super().delete(key)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "position.json", "state.pt"):
        (path / name).write_text(f"{name} of step {step}")
    return path


def restored(store: MemoryStore, attempt: int, folder: Path) -> int:
    """The step that the given attempt would go on from, after checking that its files are all of that step."""
    pointer = RunStore(store, RUN, attempt).load_checkpoint(folder)
    if pointer is None:
        return 0
    files = sorted((folder / f"step-{pointer.step:08d}").iterdir())
    assert [f.read_text() for f in files] == [f"{f.name} of step {pointer.step}" for f in files]
    assert len(files) == 3
    return pointer.step


@pytest.mark.parametrize("lives", range(12))
def test_a_kill_at_any_write_leaves_the_old_or_the_new_checkpoint(tmp_path: Path, lives: int) -> None:
    store = MortalStore()
    RunStore(store, RUN, 1).save_checkpoint(checkpoint(tmp_path, 10), 10)
    store.lives = lives
    with suppress(Killed):
        RunStore(store, RUN, 2).save_checkpoint(checkpoint(tmp_path, 20), 20)
    store.lives = 10_000
    assert restored(store, 3, tmp_path / "restored") == (10 if lives < 4 else 20)


def test_what_came_before_is_swept(tmp_path: Path) -> None:
    store = MemoryStore()
    for attempt, step in ((1, 10), (1, 20), (2, 30), (2, 40)):
        RunStore(store, RUN, attempt).save_checkpoint(checkpoint(tmp_path, step), step)
    assert len(list(store.list(f"runs/{RUN}/checkpoints/"))) == 3 + 1
    assert restored(store, 3, tmp_path / "restored") == 40


def test_a_late_writer_harms_nobody(tmp_path: Path) -> None:
    """Attempt 1 was frozen, attempt 2 took over and went on; 1 wakes and saves its older state."""
    store = MemoryStore()
    RunStore(store, RUN, 2).save_checkpoint(checkpoint(tmp_path, 30), 30)
    RunStore(store, RUN, 1).save_checkpoint(checkpoint(tmp_path, 10), 10)
    assert restored(store, 3, tmp_path / "restored") == 30


def test_a_pointer_to_swept_files_is_passed_over(tmp_path: Path) -> None:
    store = MemoryStore()
    RunStore(store, RUN, 2).save_checkpoint(checkpoint(tmp_path, 30), 30)
    RunStore(store, RUN, 1).save_checkpoint(checkpoint(tmp_path, 10), 10)
    swept = [i.key for i in store.list(f"runs/{RUN}/checkpoints/attempt-2/") if i.key.endswith("state.pt")]
    store.delete(swept[0])
    assert restored(store, 3, tmp_path / "restored") == 10
