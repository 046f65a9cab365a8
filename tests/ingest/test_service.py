"""The ingest service as it really runs: its own process, SeaweedFS, Tansu."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, a_site, wait_until
from tests.ports import any_free

from textmill.contracts.documents import Passage
from textmill.store import S3Store
from textmill_cli.local import servers
from textmill_cli.local.process import Child

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
BUCKET = "ingest-service"


@pytest.fixture(scope="module")
def store(s3_url: str) -> S3Store:
    return S3Store(s3_url, servers.ACCESS_KEY, servers.SECRET_KEY, BUCKET)


@pytest.fixture(scope="module")
def client(s3_url: str, kafka_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    port = any_free()
    environment = {
        **servers.store_environment(int(s3_url.rpartition(":")[2])),
        "TEXTMILL_STORE_BUCKET": BUCKET,
        "TEXTMILL_BUS_SERVERS": kafka_servers,
        "TEXTMILL_INGEST_PORT": str(port),
        "TEXTMILL_INGEST_CRAWL_DELAY_S": "0",
        "TEXTMILL_INGEST_CRAWL_ALLOW_NETWORKS": '["127.0.0.0/8"]',
    }
    log = tmp_path_factory.mktemp("ingest") / "ingest.log"
    child = Child("ingest", [sys.executable, "-m", "textmill_ingest.main"], log, environment)
    child.start()
    client = Client(port)
    try:
        wait_until(lambda: _ready(client, child, log), 120)
        yield client
    finally:
        child.terminate()
        assert child.wait(60), "it didn't drain on SIGTERM"


def _ready(client: Client, child: Child, log: Path) -> bool:
    assert child.alive(), log.read_text()[-3_000:]
    try:
        return client.get("/readyz").status == 200
    except OSError:
        return False


def finished(client: Client, location: str) -> dict[str, object]:
    wait_until(lambda: client.get(location).json["result"] is not None, 120)
    return client.get(location).json["result"]


def test_from_pages_and_files_to_passages(client):
    with a_site() as site:
        for n in (1, 2):
            site.put(f"/{n}.html", f"<html><body><p>Page {n}: six lines, &amp; more.</p></body></html>".encode())
        urls = [site.url(f"/{n}.html") for n in (1, 2, 3)]
        crawl = client.post_json("/v1/crawls", {"urls": urls})
        result = finished(client, crawl.headers["location"])
    assert result["state"] == "succeeded"
    crawl_id = crawl.json["job"]["crawl_id"]
    outcomes = client.get(f"/v1/crawls/{crawl_id}").json["outcomes"]
    assert [o["reason"] for o in outcomes] == [None, None, "http_404"]

    text = "师卦：地中有水。\r\n\r\n比卦：地上有水。".encode("gb18030")
    document_id = client.send("POST", "/v1/documents?name=zhouyi.txt", text).json["document_id"]
    corpus = client.post_json("/v1/corpora", {"document_ids": [document_id], "crawl_ids": [crawl_id]})
    assert finished(client, corpus.headers["location"])["state"] == "succeeded"
    corpus_id = corpus.json["job"]["corpus_id"]
    lines = client.get(f"/v1/corpora/{corpus_id}/passages").body.splitlines()
    passages = [Passage.model_validate_json(line) for line in lines]
    assert [p.text for p in passages][:2] == ["师卦：地中有水。", "比卦：地上有水。"]
    assert [p.text for p in passages][2:] == ["Page 1: six lines, & more.", "Page 2: six lines, & more."]
    for passage in passages[:2]:
        span = passage.span
        raw = client.get(f"/v1/documents/{document_id}/raw").body[span.byte_start : span.byte_end]
        assert raw.decode("gb18030") == passage.text
    assert client.send("DELETE", f"/v1/documents/{document_id}").status == 409


def test_a_failed_job_says_why(client):
    document_id = client.send("POST", "/v1/documents?name=blank.txt", b" \n").json["document_id"]
    corpus = client.post_json("/v1/corpora", {"document_ids": [document_id]})
    result = finished(client, corpus.headers["location"])
    assert result["state"] == "failed"
    assert "'blank.txt'" in result["failure"]["message"]


def test_an_upload_of_many_parts_is_whole_and_one_cut_off_leaves_nothing(client, store):
    line = "师卦：地中有水。 Hexagram 7.\n".encode()
    data = line * (40_000_000 // len(line))
    document = client.send("POST", "/v1/documents?name=large.txt", data).json
    assert document["size_bytes"] == len(data)
    assert client.get(f"/v1/documents/{document['document_id']}/raw").body == data
    before = {item.key for item in store.list("") if item.key.startswith(("raw/", "documents/", "uploads/"))}
    client.begin_and_hang_up("/v1/documents?name=cut.txt", data[:-1] + b"X", promised=len(data) + 5_000_000)
    wait_until(lambda: not store._client._list_multipart_uploads(BUCKET).uploads)
    after = {item.key for item in store.list("") if item.key.startswith(("raw/", "documents/", "uploads/"))}
    assert after == before


def test_a_stream_that_breaks_off_leaves_no_thread_behind(s3_store):
    def breaking() -> Iterator[bytes]:
        yield from (bytes(1 << 20) for _ in range(40))
        raise RuntimeError("gone")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError):
        s3_store.put_stream("broken", breaking())
    assert set(threading.enumerate()) <= before
    assert not s3_store.exists("broken")


def test_memory_stays_bounded_whatever_the_size(tmp_path):
    """The bench at a tenth of its size: 200 MB must not cost what a service holding the file would take."""
    out = tmp_path / "ingest.json"
    command = [sys.executable, str(ROOT / "bench/ingest.py"), "--gigabytes", "0.2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("goals hold")
    for reading in json.loads(out.read_text())["readings"]:
        assert reading["rss_peak_mb"] - reading["rss_before_mb"] < 160
