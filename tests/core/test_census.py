"""What Prometheus is told of open jobs, also while no worker is there, and while the store is slow or down."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from textmill.bus import MemoryBus
from textmill.census import Census
from textmill.contracts.base import new_id, utc_now
from textmill.contracts.jobs import CorpusJob
from textmill.errors import DependencyDown
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore, ObjectInfo
from textmill.worker import Worker


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def job() -> CorpusJob:
    return CorpusJob(document_ids=(new_id("doc"),))


def test_an_api_without_workers_counts_the_open_jobs() -> None:
    jobs = Jobs(MemoryStore())
    app = create_app("ingest", jobs=jobs, kinds=("corpus", "crawl"), checks={})
    for _ in range(3):
        jobs.submit(job())
    TestClient(app).get("/metrics")
    for thread in threading.enumerate():  # the answer waits for the look for a second and no more
        if thread.name == "census":
            thread.join(60)
    assert value("textmill_jobs_open", kind="corpus") == 3
    assert value("textmill_jobs_open", kind="crawl") == 0


def test_the_age_is_of_the_oldest_job() -> None:
    now = utc_now()
    times = iter([now - timedelta(hours=2), now - timedelta(hours=1), now, now, now])
    jobs = Jobs(MemoryStore(), now=lambda: next(times))
    jobs.submit(job())
    jobs.submit(job())
    assert jobs.open_since("corpus") == (2, pytest.approx(7200))
    assert Jobs(MemoryStore()).open_since("corpus") == (0, 0.0)


def test_it_looks_once_in_a_while() -> None:
    jobs = Jobs(MemoryStore())
    census = Census(jobs, ("corpus",), every_s=600, wait_s=60)
    census.refresh()
    jobs.submit(job())
    census.refresh()
    assert value("textmill_jobs_open", kind="corpus") == 0


class SlowStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        self.answers.wait(600)
        return super().list(prefix, after)


def test_a_store_that_hangs_holds_up_no_scrape() -> None:
    store = SlowStore()
    census = Census(Jobs(store), ("corpus",), wait_s=0.05)
    before = threading.active_count()
    for _ in range(5):
        census.refresh()
    assert threading.active_count() <= before + 1  # one look is under way, whoever asks
    store.answers.set()
    for thread in threading.enumerate():  # or its figures come in the middle of the next test
        if thread.name == "census":
            thread.join(60)


class DownStore(MemoryStore):
    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        raise DependencyDown("the store is down")


def test_a_store_that_is_down_leaves_the_last_figures() -> None:
    jobs = Jobs(MemoryStore())
    jobs.submit(job())
    Census(jobs, ("corpus",), wait_s=60).refresh()
    Census(Jobs(DownStore()), ("corpus",), wait_s=60).refresh()
    assert value("textmill_jobs_open", kind="corpus") == 1


def test_a_worker_tells_what_it_has_in_hand_and_begins_at_zero() -> None:
    store, gate, seen = MemoryStore(), threading.Event(), threading.Event()
    jobs = Jobs(store)

    def work(one: object, context: object) -> None:
        seen.set()
        gate.wait(600)

    worker = Worker(jobs, MemoryBus(), {"evaluate": work}, "group")  # type: ignore[dict-item]
    assert value("textmill_job_attempts_total", kind="evaluate", outcome="retry") == 0
    assert value("textmill_jobs_finished_total", kind="evaluate", state="failed") == 0
    corpus = Worker(jobs, MemoryBus(), {"corpus": work}, "group")  # type: ignore[dict-item]
    jobs.submit(job())
    thread = threading.Thread(target=corpus.run, daemon=True)
    thread.start()
    assert seen.wait(60)
    assert value("textmill_jobs_running", kind="corpus") == 1
    gate.set()
    until = time.monotonic() + 60
    while value("textmill_jobs_running", kind="corpus") and time.monotonic() < until:
        time.sleep(0.01)
    assert value("textmill_jobs_running", kind="corpus") == 0
    corpus.drain()
    thread.join(60)
    worker.drain()
