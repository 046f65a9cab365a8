"""A backup is what a crash would have left: taken at any moment of a job's life, the restored store finishes it."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from textmill.contracts.base import new_id, utc_now
from textmill.contracts.jobs import CorpusJob, Output
from textmill.errors import BadRequest, Conflict, DependencyDown
from textmill.jobs import Jobs
from textmill.store import MemoryStore, ObjectInfo, S3Store
from textmill_cli.backup import back_up, indexes, restore, verify
from textmill_cli.backup_command import take_backup, the_store


def contents(store: MemoryStore | S3Store) -> dict[str, bytes]:
    return {info.key: store.get(info.key) for info in store.list("")}


def filled() -> MemoryStore:
    store = MemoryStore()
    for key, data in {
        "raw/aa": b"text" * 1000, "models/m/attempt-1/w": b"weights", "models/m/manifest.json": b"{}",
        "open/corpus/job_1.1": b"now", "deployments/zhouyi.json": b"{}", "empty": b"",
    }.items():  # fmt: skip
        store.put(key, data)
    return store


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    store, other = filled(), MemoryStore()
    made = back_up(store, tmp_path)
    assert restore(other, tmp_path) == made.objects == 6
    assert contents(other) == contents(store)


def test_the_next_backup_adds_what_is_new(tmp_path: Path) -> None:
    store = filled()
    first = back_up(store, tmp_path)
    store.put("raw/bb", b"x" * 10)
    store.put("deployments/zhouyi.json", b'{"changed": 1}')
    second = back_up(store, tmp_path)
    assert second.new_bytes == 10 + len(b'{"changed": 1}')
    assert indexes(tmp_path) == [first.index, second.index]
    older = MemoryStore()
    restore(older, tmp_path, first.index)
    assert older.get("deployments/zhouyi.json") == b"{}"
    assert not older.exists("raw/bb")


def test_what_lies_in_the_store_for_good_is_read_once(tmp_path: Path) -> None:
    class Counting(MemoryStore):
        read: list[str]

        def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
            self.read.append(key)
            return super().stream(key, chunk_bytes)

    store = Counting()
    store.read = []
    store.put("raw/aa", b"text")
    store.put("jobs/a", b"1")
    back_up(store, tmp_path)
    back_up(store, tmp_path)
    assert store.read == ["jobs/a", "raw/aa", "jobs/a"]


def test_damage_is_found_before_anything_is_written(tmp_path: Path) -> None:
    back_up(filled(), tmp_path)
    victim = next(path for path in (tmp_path / "objects").rglob("*") if path.is_file() and path.stat().st_size)
    victim.write_bytes(b"rot")
    other = MemoryStore()
    for check in (lambda: verify(tmp_path), lambda: restore(other, tmp_path)):
        with pytest.raises(BadRequest, match="missing or damaged"):
            check()
    assert contents(other) == {}


def test_a_store_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    back_up(filled(), tmp_path)
    other = MemoryStore()
    other.put("raw/zz", b"mine")
    with pytest.raises(Conflict, match="raw/zz"):
        restore(other, tmp_path)
    with pytest.raises(BadRequest, match="there are: index-"):
        restore(MemoryStore(), tmp_path, "index-no")
    with pytest.raises(BadRequest, match="none"):
        restore(MemoryStore(), tmp_path / "empty")


def test_a_backup_that_breaks_off_is_none(tmp_path: Path) -> None:
    class Breaking(MemoryStore):
        def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
            raise DependencyDown("gone")

    store = Breaking()
    store.put("raw/aa", b"text")
    with pytest.raises(DependencyDown):
        back_up(store, tmp_path)
    assert indexes(tmp_path) == []
    assert not list(tmp_path.glob(".partial*"))


class Moving(MemoryStore):
    """Something happens in the store just before the nth call of a backup."""

    def __init__(self) -> None:
        super().__init__()
        self.happen: Callable[[], None] | None = None
        self.countdown = -1

    def _tick(self) -> None:
        self.countdown -= 1
        if self.countdown == 0 and self.happen is not None:
            self.countdown, happen = -1, self.happen
            happen()

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        self._tick()
        return super().list(prefix, after)

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        self._tick()
        return super().stream(key, chunk_bytes)


@pytest.mark.parametrize("moment", range(1, 16))
@pytest.mark.parametrize("event", ["submitted", "finished"])
def test_no_job_is_forgotten_whenever_the_backup_is_taken(event: str, moment: int, tmp_path: Path) -> None:
    """A job is submitted, or ends, between any two steps: in the restored store it waits, or has its manifest."""
    store = Moving()
    jobs = Jobs(store)
    known = jobs.submit(CorpusJob(document_ids=(new_id("doc"),)))

    def finish() -> None:
        attempt = jobs.claim("corpus", known.job_id, "w")
        assert attempt is not None
        store.put("corpora/c/attempt-1/part", b"passages")
        result = jobs.succeed(attempt, Output(manifest_key="corpora/c/manifest.json", manifest={"a": 1}))
        assert result.state == "succeeded"

    later = CorpusJob(document_ids=(new_id("doc"),))
    store.happen = finish if event == "finished" else lambda: jobs.submit(later) and None
    store.countdown = moment
    back_up(store, tmp_path)
    store.countdown = -1
    other = MemoryStore()
    restore(other, tmp_path)
    restored = Jobs(other, now=lambda: utc_now() + timedelta(minutes=1))  # the leases of then have lapsed
    waiting = set(restored.recover("corpus"))  # settles what was half settled
    for job_id in restored.job_ids("corpus"):
        view = restored.view("corpus", job_id)
        if not view.finished:
            assert job_id in waiting
        else:
            assert other.exists("corpora/c/manifest.json")
            assert other.exists("corpora/c/attempt-1/part")
    assert known.job_id in set(restored.job_ids("corpus"))


def test_on_a_real_store_by_the_command(
    s3_store: S3Store, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3_store.put("raw/aa", b"text" * 100_000)
    s3_store.put("models/m/manifest.json", b"{}")
    made = back_up(s3_store, tmp_path)
    assert made.objects == 2
    for name, value in {"URL": s3_url, "ACCESS_KEY": "textmill", "SECRET_KEY": "textmill-local"}.items():
        monkeypatch.setenv(f"TEXTMILL_STORE_{name}", value)
    monkeypatch.setenv("TEXTMILL_STORE_BUCKET", f"restored-{new_id('b')[2:14]}")
    target = the_store()
    assert restore(target, tmp_path) == 2
    assert target.get("raw/aa") == b"text" * 100_000
    take_backup(tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["new_bytes"] == 0
