"""One contract for every object store: the fake and SeaweedFS through the minio client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from textmill.errors import DependencyDown, NotFound, TextmillError
from textmill.store import MemoryStore, ObjectStore, S3Store, probe


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "memory":
        return MemoryStore()
    real: S3Store = request.getfixturevalue("s3_store")
    return real


def test_create_writes_once(store: ObjectStore) -> None:
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.get("a/b") == b"first"


def test_create_has_one_winner_among_racers(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("race", str(i).encode()), range(8)))
    assert sum(won) == 1
    assert store.get("race") == str(won.index(True)).encode()


def test_create_takes_an_empty_body(store: ObjectStore) -> None:
    assert store.create("empty", b"")
    assert store.get("empty") == b""
    assert store.exists("empty")


def test_put_replaces(store: ObjectStore) -> None:
    store.put("k", b"one")
    store.put("k", b"two")
    assert store.get("k") == b"two"


def test_keys_may_hold_chinese_and_spaces(store: ObjectStore) -> None:
    assert store.create("文 档/一#?.txt", b"x")
    assert [item.key for item in store.list("文 档/")] == ["文 档/一#?.txt"]
    assert store.get("文 档/一#?.txt") == b"x"


def test_missing_objects_are_named(store: ObjectStore) -> None:
    for read in (store.get, store.stream, lambda key: store.get_range(key, 0, 1), lambda key: store.copy(key, "to")):
        with pytest.raises(NotFound, match="gone"):
            read("gone")
    assert not store.exists("gone")
    store.delete("gone")


def test_streams_are_whole_and_in_order(store: ObjectStore) -> None:
    chunks = [bytes([i]) * 300_000 for i in range(70)]
    assert store.put_stream("big", iter(chunks)) == 21_000_000
    assert b"".join(store.stream("big")) == b"".join(chunks)
    assert store.get_range("big", 299_999, 300_001) == b"\x00\x01"
    assert store.get_range("big", 5, 5) == b""


def test_a_stream_that_breaks_leaves_nothing(store: ObjectStore) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 1_000
        raise ValueError("the client went away")

    with pytest.raises(ValueError, match="went away"):
        store.put_stream("half", broken())
    assert not store.exists("half")


def test_list_is_sorted_and_bounded_by_prefix_and_after(store: ObjectStore) -> None:
    for key in ("p/b", "p/a", "p/c/d", "q/a", "p"):
        store.put(key, b"12")
    assert [(i.key, i.size_bytes) for i in store.list("p/")] == [("p/a", 2), ("p/b", 2), ("p/c/d", 2)]
    assert [i.key for i in store.list("p/", after="p/a")] == ["p/b", "p/c/d"]
    assert list(store.list("none/")) == []


def test_copy_and_delete(store: ObjectStore) -> None:
    store.put("from", b"data")
    store.copy("from", "to")
    store.delete("from")
    assert store.get("to") == b"data"
    assert not store.exists("from")


def test_probe_accepts_and_leaves_nothing(store: ObjectStore) -> None:
    probe(store)
    assert list(store.list("probe/")) == []


def test_probe_refuses_a_store_that_overwrites() -> None:
    class Overwriting(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    with pytest.raises(TextmillError, match="create-only"):
        probe(Overwriting())


def test_a_store_that_is_down_says_so() -> None:
    gone = S3Store("http://127.0.0.1:9", "a", "b", "bucket")
    for call in (lambda: gone.get("k"), lambda: gone.create("k", b""), lambda: list(gone.list(""))):
        with pytest.raises(DependencyDown, match=r"127\.0\.0\.1:9"):
            call()
