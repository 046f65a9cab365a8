"""The HTTP API on a real uvicorn: uploads, lists, deletes with what depends on them, jobs."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator

import pytest
from ingest_cases import context_for, kept
from pydantic import SecretStr
from serving import Client, serving, wait_until

from textmill.contracts.base import new_id
from textmill.contracts.datasets import Cost, Counts, DatasetManifest
from textmill.contracts.jobs import CorpusJob
from textmill.errors import DependencyDown
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_ingest.api import build_app
from textmill_ingest.worker import build_corpus

FORM = {"Content_Type": "multipart/form-data; boundary=b0"}
TEXT = "师卦：地中有水。\n\nHexagram 8 is Bi.".encode()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> Iterator[Client]:
    with serving(build_app(store, Jobs(store), SecretStr(""))) as client:
        yield client


def uploads_left(store: MemoryStore) -> list[str]:
    return [item.key for item in store.list("uploads/")]


def form(*files: tuple[str, str, bytes]) -> tuple[bytes, str]:
    parts = b"".join(
        f'--b0\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'.encode()
        + (f"Content-Type: {content_type}\r\n".encode() if content_type else b"") + b"\r\n" + data + b"\r\n"
        for name, content_type, data in files
    )  # fmt: skip
    return parts + b"--b0--\r\n", "multipart/form-data; boundary=b0"


def test_a_raw_upload_comes_back_byte_for_byte(client):
    first = client.send("POST", "/v1/documents?name=shi.txt", TEXT)
    again = client.send("POST", "/v1/documents?name=shi.txt", iter([TEXT[:5], TEXT[5:]]))
    assert (first.status, again.status) == (201, 200)
    assert first.json == again.json
    document_id = first.json["document_id"]
    assert client.get(f"/v1/documents/{document_id}").json == first.json
    raw = client.get(f"/v1/documents/{document_id}/raw")
    assert raw.body == TEXT
    assert raw.headers["content-disposition"] == "attachment"


def test_a_form_of_several_files_is_several_documents(client):
    body, content_type = form(
        ("a.md", "", b"# A"), ("dir\\师.csv", "text/csv", "text\r\n师".encode()), ("c.txt", "", b"c" * 200_000)
    )
    answer = client.send("POST", "/v1/documents", body, Content_Type=content_type)
    assert answer.status == 201
    found = [(d["name"], d["media_type"], d["size_bytes"]) for d in answer.json["documents"]]
    assert found == [("a.md", "text/markdown", 3), ("师.csv", "text/csv", 9), ("c.txt", "text/plain", 200_000)]


def test_a_form_may_hold_what_looks_like_its_boundary(client):
    data = b"\r\n--b\r\n--b00\r\n-" * 9_000
    body, content_type = form(("a.txt", "", data))
    document = client.send("POST", "/v1/documents", body, Content_Type=content_type).json["documents"][0]
    assert client.get(f"/v1/documents/{document['document_id']}/raw").body == data


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("?name=a.png", b"x", {}, 415, "allowed are text/plain"),
        ("?name=a.txt", b"x", {"Content_Type": "image/png"}, 415, "allowed are text/plain"),
        ("", b"x", {}, 400, "needs ?name="),
        ("?name=..", b"x", {}, 400, "document name"),
        ("?name=a.txt", b"", {}, 400, "is empty"),
        ("?name=a.txt", b"ok\xff\x00\x01", {}, 422, "utf-8 fails at byte 2"),
        ("?name=a.txt&encoding=nope", b"x", {}, 400, "unknown encoding"),
        ("?name=a.txt&encoding=ascii", "é".encode(), {}, 422, "ascii fails at byte 0"),
        ("", b"--x--", {"Content_Type": "multipart/form-data"}, 400, "names no boundary"),
        ("", b"junk", FORM, 400, "no multipart/form-data"),
        ("", b"--b0\r\n", FORM, 400, "ends before its closing"),
        ("", b'--b0\r\nContent-Disposition: form-data; name="k"\r\n\r\nv\r\n--b0--', FORM, 400, "'k' is no file"),
    ],
)  # fmt: skip
def test_what_can_t_be_kept_is_refused_with_the_reason(client, store, path, body, headers, status, says):
    answer = client.send("POST", f"/v1/documents{path}", body, **headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json["detail"]
    assert list(store.list("")) == []


def test_a_form_cut_off_inside_a_file_keeps_nothing_of_it(client, store):
    body, content_type = form(("a.txt", "", b"x" * 100_000))
    answer = client.send("POST", "/v1/documents", body[:-50], Content_Type=content_type)
    assert answer.status == 400
    assert list(store.list("")) == []


def test_a_client_that_hangs_up_leaves_no_object(client, store):
    began = threading.Event()
    stored = store.put_stream

    def put_stream(key: str, chunks: object) -> int:
        began.set()
        return stored(key, chunks)

    store.put_stream = put_stream
    client.begin_and_hang_up("/v1/documents?name=a.txt", b"x" * 300_000, promised=10**9)
    assert began.wait(60)
    assert client.send("POST", "/v1/documents?name=b.txt", b"y").status == 201
    assert [item.key for item in store.list("raw/")] == [f"raw/{_sha(b'y')}"]
    assert uploads_left(store) == []


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_with_the_store_down_the_answer_is_503_and_when_to_come_back():
    class Down(MemoryStore):
        def put_stream(self, key: str, chunks: object) -> int:
            raise DependencyDown("the object store can't be reached")

    store = Down()
    with serving(build_app(store, Jobs(store), SecretStr(""))) as client:
        answer = client.send("POST", "/v1/documents?name=a.txt", b"x" * 10_000)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_a_slow_store_holds_the_client_back_in_bounded_memory(store):
    taken: list[int] = []
    go = threading.Event()

    class Slow(MemoryStore):
        def put_stream(self, key: str, chunks: object) -> int:
            go.wait(600)
            return super().put_stream(key, chunks)

    slow = Slow()

    def body() -> Iterator[bytes]:
        for _ in range(400):
            taken.append(1)
            yield b"x" * 100_000

    with serving(build_app(slow, Jobs(slow), SecretStr(""))) as client:
        thread = threading.Thread(target=lambda: client.send("POST", "/v1/documents?name=a.txt", body()))
        thread.start()
        time.sleep(0.4)
        held = len(taken)
        go.set()
        thread.join()
    assert held < 200, "40 MB were read while the store took nothing"
    assert len(taken) == 400


def test_documents_are_listed_in_pages(client, store):
    ids = sorted(kept(store, TEXT, f"{n}.txt").document_id for n in range(3))
    first = client.get("/v1/documents?limit=2").json
    assert [d["document_id"] for d in first["items"]] == ids[:2]
    rest = client.get(f"/v1/documents?limit=2&after={first['next_after']}").json
    assert ([d["document_id"] for d in rest["items"]], rest["next_after"]) == (ids[2:], None)
    assert client.get("/v1/documents/doc_unknown").status == 404


def corpus_of(store: MemoryStore, *document_ids: str) -> str:
    """A finished corpus, as the worker leaves it."""
    output = build_corpus(CorpusJob(document_ids=document_ids), context_for(store))
    store.put(output.manifest_key, json.dumps(output.manifest).encode())
    return output.manifest["corpus_id"]


def dataset_of(store: MemoryStore, corpus_id: str, *document_ids: str) -> str:
    manifest = DatasetManifest(
        dataset_id=new_id("ds"), corpus_id=corpus_id, records={}, counts=Counts(), counts_by_strategy={}, cost=Cost(),
        calls=0, calls_reused=0, records_keys={}, rejects_key="", card_key="", exports={}, document_ids=document_ids,
        prompt_versions=[], models=[],
    )  # fmt: skip
    store.put(f"datasets/{manifest.dataset_id}/manifest.json", manifest.to_json())
    return manifest.dataset_id


def test_a_document_in_use_is_deleted_only_by_force_and_says_what_it_leaves(client, store):
    document = kept(store, TEXT)
    corpus_id = corpus_of(store, document.document_id)
    dataset_id = dataset_of(store, corpus_id, document.document_id)
    refused = client.send("DELETE", f"/v1/documents/{document.document_id}")
    assert refused.status == 409
    assert f"corpus {corpus_id}, dataset {dataset_id}" in refused.json["detail"]
    forced = client.send("DELETE", f"/v1/documents/{document.document_id}?force=true")
    assert forced.json["bytes_deleted"] is True
    assert [d["id"] for d in forced.json["dependents"]] == [corpus_id, dataset_id]
    assert client.get(f"/v1/documents/{document.document_id}").status == 404
    assert client.send("DELETE", f"/v1/documents/{document.document_id}").status == 404


def test_a_corpus_is_read_and_deleted_like_a_document(client, store):
    corpus_id = corpus_of(store, kept(store, TEXT).document_id)
    assert client.get("/v1/corpora").json["items"][0]["corpus_id"] == corpus_id
    assert client.get(f"/v1/corpora/{corpus_id}").json["languages"] == {"zh": 1, "en": 1}
    lines = client.get(f"/v1/corpora/{corpus_id}/passages").body.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["师卦：地中有水。", "Hexagram 8 is Bi."]
    dataset_of(store, corpus_id)
    assert client.send("DELETE", f"/v1/corpora/{corpus_id}").status == 409
    assert client.send("DELETE", f"/v1/corpora/{corpus_id}?force=true").status == 200
    assert list(store.list("corpora/")) == []


def test_a_corpus_of_unknown_documents_is_refused_at_once(client, store):
    ghost, no_crawl = new_id("doc"), new_id("crl")
    answer = client.post_json("/v1/corpora", {"document_ids": [ghost], "crawl_ids": [no_crawl]})
    assert answer.status == 404
    assert ghost in answer.json["detail"]
    assert no_crawl in answer.json["detail"]
    assert client.post_json("/v1/corpora", {}).status == 400
    assert list(store.list("jobs/")) == []


def test_jobs_are_accepted(client, store):
    document = kept(store, TEXT)
    corpus = client.post_json("/v1/corpora", {"document_ids": [document.document_id], "split": {"method": "budget"}})
    crawl = client.post_json("/v1/crawls", {"urls": ["http://example.com/1"]})
    assert (corpus.status, crawl.status) == (202, 202)
    assert client.get(crawl.headers["location"]).json["state"] == "queued"


def test_two_uploads_at_once_when_one_is_allowed_both_end(store):
    with serving(build_app(store, Jobs(store), SecretStr(""), uploads_at_once=1)) as client:
        answers: list[int] = []

        def send(name: str) -> None:
            body = (bytes([65 + i % 26]) * 100_000 for i in range(30))
            answers.append(client.send("POST", f"/v1/documents?name={name}", body).status)

        threads = [threading.Thread(target=send, args=(f"{n}.txt",)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [201, 201, 201]
    wait_until(lambda: not uploads_left(store))
