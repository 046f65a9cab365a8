"""Documents are kept once, under an id that their content gives, and leave nothing behind when they go."""

from collections.abc import Iterator

import pytest
from ingest_cases import kept

from textmill.contracts.base import new_id
from textmill.errors import BadRequest, Conflict, DependencyDown, NotFound, Transient, UndecodableText
from textmill.store import MemoryStore
from textmill_ingest import originals
from textmill_ingest.documents import Source, delete_document, get_document, keep_document, list_documents

TEXT = "师卦：地中有水。".encode("gb18030")


def keys(store: MemoryStore, prefix: str = "") -> list[str]:
    return [item.key for item in store.list(prefix)]


def test_a_document_tells_what_it_is():
    store = MemoryStore()
    document = kept(store, TEXT)
    assert (document.size_bytes, document.encoding.name) == (len(TEXT), "gb18030")
    assert store.get(document.raw_key) == TEXT
    assert get_document(store, document.document_id) == document
    assert keys(store, "uploads/") == []


def test_the_same_upload_twice_is_one_document():
    store = MemoryStore()
    first = keep_document(store, [TEXT], Source("a.txt", "text/plain"))
    again = keep_document(store, [TEXT[:3], TEXT[3:]], Source("a.txt", "text/plain"))
    assert (first.created, again.created) == (True, False)
    assert first.document == again.document


def test_two_names_are_two_documents_over_one_original():
    store = MemoryStore()
    a, b = kept(store, TEXT, "a.txt"), kept(store, TEXT, "b.txt")
    assert a.document_id != b.document_id
    assert keys(store, "raw/") == [a.raw_key]
    assert delete_document(store, a.document_id) is False
    assert store.get(b.raw_key) == TEXT
    assert delete_document(store, b.document_id) is True
    assert keys(store) == []


def test_the_same_bytes_and_name_as_another_type_are_a_conflict():
    store = MemoryStore()
    kept(store, TEXT)
    with pytest.raises(Conflict, match="is text/plain in gb18030, not text/markdown"):
        kept(store, TEXT, media_type="text/markdown")


@pytest.mark.parametrize(("data", "error"), [(b"", BadRequest), (b"\xff\x00\x01" * 9, UndecodableText)])
def test_a_refused_upload_leaves_nothing(data, error):
    store = MemoryStore()
    with pytest.raises(error):
        kept(store, data)
    assert keys(store) == []


def test_a_stream_that_breaks_leaves_nothing():
    def breaking() -> Iterator[bytes]:
        yield b"half of "
        raise RuntimeError("gone")

    store = MemoryStore()
    with pytest.raises(RuntimeError):
        keep_document(store, breaking(), Source("a.txt", "text/plain"))
    assert keys(store) == []


def test_an_original_lost_to_a_crash_comes_back_with_the_next_upload():
    store = MemoryStore()
    document = kept(store, TEXT)
    store.delete(document.raw_key)
    kept(store, TEXT)
    assert store.get(document.raw_key) == TEXT


def test_an_upload_waits_for_a_delete_of_the_same_bytes(monkeypatch):
    store = MemoryStore()
    document = kept(store, TEXT)
    monkeypatch.setattr(originals, "_PATIENCE_S", 0.1)
    sign = f"deleting/{document.sha256}/{new_id('del')}"
    store.put(sign, b"")
    with pytest.raises(Transient, match="being deleted right now"):
        kept(store, TEXT, "b.txt")
    store.delete(sign)
    store.put(f"deleting/{document.sha256}/del_{0:032x}", b"")
    assert kept(store, TEXT, "b.txt").sha256 == document.sha256


def test_stale_uploads_are_swept_and_fresh_ones_left():
    store = MemoryStore()
    fresh = f"uploads/{new_id('upl')}"
    store.put(fresh, b"x")
    store.put(f"uploads/upl_{0:032x}", b"x")
    assert originals.sweep_uploads(store) == 1
    assert keys(store) == [fresh]


def test_lists_are_paged_in_the_order_of_ids():
    store = MemoryStore()
    ids = sorted(kept(store, TEXT, f"{n}.txt").document_id for n in range(5))
    assert [d.document_id for d in list_documents(store, 2)] == ids[:2]
    assert [d.document_id for d in list_documents(store, 9, after=ids[1])] == ids[2:]


def test_an_unknown_document_is_named():
    with pytest.raises(NotFound, match="no document doc_x"):
        get_document(MemoryStore(), "doc_x")


def test_a_store_that_is_down_is_said_so():
    class Down(MemoryStore):
        def put_stream(self, key: str, chunks: object) -> int:
            raise DependencyDown("down")

        def delete(self, key: str) -> None:
            raise DependencyDown("down too")

    with pytest.raises(DependencyDown, match=r"^down$"):
        kept(Down(), TEXT)
