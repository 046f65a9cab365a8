"""Uploads a large text to a real ingest service on a real SeaweedFS and watches the service's memory.

    python bench/ingest.py [--gigabytes 2]

Writes ``bench/results/ingest.json`` and prints each figure beside its goal. RSS is the service process's largest, seen
20 times a second. One upload as a raw body, one as multipart/form-data.
"""

import argparse
import hashlib
import http.client
import json
import os
import platform
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from textmill_cli.local import servers
from textmill_cli.local.ports import any_free
from textmill_cli.local.process import Child
from textmill_cli.local.wait import wait_until

ROOT = Path(__file__).resolve().parent.parent
RSS_GOAL_MB = 300
CHUNK_BYTES = 1 << 20
LINE = "Hexagram {n}: six lines, earth over water. 师卦第七，坤上坎下，地中有水，君子以容民畜众。\n"


@dataclass(frozen=True)
class Reading:
    form: str
    megabytes: float
    seconds: float
    megabytes_per_s: float
    rss_before_mb: float
    rss_peak_mb: float
    sha256_matches: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of each upload (10^9 bytes)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/ingest.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder, service(Path(folder)) as (port, process):
        readings = [measure(port, process, form, int(options.gigabytes * 1e9)) for form in ("raw", "multipart")]
    goals = [
        (f"{r.form}: peak RSS", f"{r.rss_peak_mb:.0f} MB", f"< {RSS_GOAL_MB} MB", r.rss_peak_mb < RSS_GOAL_MB)
        for r in readings
    ]
    goals += [
        (f"{r.form}: stored bytes are the sent ones", str(r.sha256_matches), "True", r.sha256_matches) for r in readings
    ]
    report(options.out, readings, goals)
    return 0 if all(held for *_, held in goals) else 1


def report(out: Path, readings: list[Reading], goals: list[tuple[str, str, str, bool]]) -> None:
    for reading in readings:
        print(
            f"{reading.form}: {reading.megabytes:.0f} MB in {reading.seconds:.1f} s, {reading.megabytes_per_s:.0f} MB/s"
        )
    for name, figure, goal, held in goals:
        print(f"{name:<42} {figure:>10}   goal {goal:<10} {'holds' if held else 'MISSED'}")
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    document = {
        "command": " ".join(["python", "bench/ingest.py", *sys.argv[1:]]),
        "machine": machine,
        "goal_rss_mb": RSS_GOAL_MB,
        "readings": [asdict(reading) for reading in readings],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{sum(held for *_, held in goals)} of {len(goals)} goals hold")


def measure(port: int, process: psutil.Process, form: str, size: int) -> Reading:
    before = process.memory_info().rss
    digest = hashlib.sha256()
    with peak_rss(process) as peak:
        began = time.perf_counter()
        answer = upload(port, form, size, digest)
        seconds = time.perf_counter() - began
    return Reading(
        form=form,
        megabytes=size / 1e6,
        seconds=round(seconds, 2),
        megabytes_per_s=round(size / 1e6 / seconds, 1),
        rss_before_mb=round(before / 1e6, 1),
        rss_peak_mb=round(max(peak) / 1e6, 1),
        sha256_matches=answer["sha256"] == digest.hexdigest(),
    )


@contextmanager
def peak_rss(process: psutil.Process) -> Iterator[list[int]]:
    seen, stop = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def upload(port: int, form: str, size: int, digest: "hashlib._Hash") -> dict[str, str]:
    """Send ``size`` bytes of text, made up as they go."""
    head, tail, content_type, path = b"", b"", "text/plain", "/v1/documents?name=bench-raw.txt"
    if form == "multipart":
        head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="bench-form.txt"\r\n\r\n'
        tail, content_type, path = b"\r\n--edge--\r\n", "multipart/form-data; boundary=edge", "/v1/documents"

    def body() -> Iterator[bytes]:
        yield head
        for chunk in text(size, seed=form):
            digest.update(chunk)
            yield chunk
        yield tail

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    length = str(len(head) + size + len(tail))
    connection.request("POST", path, body(), {"Content-Type": content_type, "Content-Length": length})
    response = connection.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    if response.status != 201:
        raise SystemExit(f"the upload got {response.status}: {answer}")
    document: dict[str, str] = answer["documents"][0] if form == "multipart" else answer
    return document


def text(size: int, seed: str) -> Iterator[bytes]:
    """``size`` bytes of numbered lines in UTF-8; the last is filled up with full stops."""
    lines = (f"{seed} {LINE.format(n=n)}".encode() for n in range(size))
    buffer = bytearray()
    sent = 0
    for line in lines:
        if sent + len(buffer) + len(line) > size:
            break
        buffer += line
        if len(buffer) >= CHUNK_BYTES:
            sent += len(buffer)
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer) + b"." * (size - sent - len(buffer))


@contextmanager
def service(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """A SeaweedFS on disk and an ingest service in front of it, both real processes on loopback."""
    s3_port, port = any_free(), any_free()
    environment = {
        **servers.store_environment(s3_port),
        "TEXTMILL_INGEST_PORT": str(port),
        "TEXTMILL_INGEST_ROLE": "api",
    }
    command = [sys.executable, "-m", "textmill_ingest.main"]
    store = servers.object_store(folder / "store", s3_port, folder / "store.log")
    ingest = Child("ingest", command, folder / "ingest.log", environment)
    try:
        store.start()
        ingest.start()
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 90, f"ingest (its log is {ingest.log_file})")
        assert ingest.pid is not None
        yield port, psutil.Process(ingest.pid)
    finally:
        ingest.stop(30)
        store.stop(30)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
