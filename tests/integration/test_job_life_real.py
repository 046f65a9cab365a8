"""The life of a job on real SeaweedFS and Tansu, with worker processes that are killed, frozen and drained."""

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kafka import KafkaProducer
from tests.ports import any_free

from textmill.bus import KafkaBus, jobs_topic
from textmill.contracts.base import new_id
from textmill.contracts.jobs import CorpusJob, JobView
from textmill.errors import DependencyDown
from textmill.jobs import Jobs
from textmill.store import S3Store
from textmill_cli.local import servers
from textmill_cli.local.process import Child
from textmill_cli.local.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SCRIPT = Path(__file__).with_name("gated_worker.py")


@dataclass
class Mill:
    """A store, a broker that may be killed, and workers."""

    store: S3Store
    broker: Child
    environment: dict[str, str]
    folder: Path
    workers: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus = KafkaBus(self.environment["TEXTMILL_BUS_SERVERS"], timeout_s=2.0)
        self.jobs = Jobs(self.store, ring=self.bus.ring, bury=self.bus.bury)

    def start_workers(self, count: int, lease_ttl_s: float = 6.0) -> list[Child]:
        started = []
        for _ in range(count):
            name = f"worker-{len(self.workers)}"
            own = {"TEXTMILL_GATED_PORT": str(any_free()), "TEXTMILL_GATED_LEASE_TTL_S": str(lease_ttl_s)}
            child = Child(name, [sys.executable, str(SCRIPT)], self.folder / f"{name}.log", self.environment | own)
            child.start()
            self.workers.append(child)
            started.append(child)
        return started

    def submit(self) -> CorpusJob:
        job = CorpusJob(document_ids=(new_id("doc"),))
        self.jobs.submit(job)
        return job

    def open_gate(self, job: CorpusJob | None = None) -> None:
        self.store.put(f"gate/{job.job_id if job else 'all'}", b"")

    def begun(self, job: CorpusJob) -> dict[int, int]:
        """The process that took each attempt."""
        prefix = f"begun/{job.job_id}/"
        keys = [item.key for item in self.store.list(prefix)]
        return {int(key.removeprefix(prefix)): int(self.store.get(key)) for key in keys}

    def wait_begun(self, job: CorpusJob, attempt: int = 1) -> int:
        wait_until(lambda: attempt in self.begun(job), 120, f"attempt {attempt} of {job.job_id}")
        return self.begun(job)[attempt]

    def worker(self, pid: int) -> Child:
        return next(w for w in self.workers if w.pid == pid)

    def view(self, job: CorpusJob) -> JobView:
        return self.jobs.view("corpus", job.job_id)

    def wait_done(self, job: CorpusJob, timeout_s: float = 120) -> JobView:
        wait_until(lambda: self.view(job).finished and self._settled(job), timeout_s, f"the end of {job.job_id}")
        return self.view(job)

    def _settled(self, job: CorpusJob) -> bool:
        return not list(self.store.list(f"open/corpus/{job.job_id}"))

    def check_one_result(self, job: CorpusJob, attempt: int) -> None:
        """It succeeded once, and the manifest is that of the attempt whose result counts."""
        view = self.wait_done(job)
        assert view.result is not None
        assert (view.state, view.result.attempt, view.life) == ("succeeded", attempt, 1)
        assert view.result.output is not None
        manifest = json.loads(self.store.get(f"corpora/{job.corpus_id}/manifest.json"))
        assert manifest == view.result.output.manifest == {"attempt": attempt, "pid": self.begun(job)[attempt]}


@pytest.fixture
def mill(s3_url: str, tmp_path: Path) -> Iterator[Mill]:
    bucket = f"mill-{uuid.uuid4().hex[:20]}"
    store = S3Store(s3_url, servers.ACCESS_KEY, servers.SECRET_KEY, bucket)
    store.ensure_bucket()
    port = any_free()
    broker = servers.broker(port, tmp_path / "tansu.log")
    broker.start()
    wait_until(lambda: answers(KafkaBus(f"127.0.0.1:{port}").check), 60, "Tansu")
    environment = servers.store_environment(0) | servers.bus_environment(port)
    environment |= {
        "TEXTMILL_STORE_URL": s3_url,
        "TEXTMILL_STORE_BUCKET": bucket,
        "TEXTMILL_BUS_SESSION_TIMEOUT_S": "2",
        "TEXTMILL_GATED_RECOVER_EVERY_S": "1",
        "TEXTMILL_GATED_GRACE_S": "5",
    }
    made = Mill(store, broker, environment, tmp_path)
    yield made
    for child in (*made.workers, broker):
        child.kill()


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except DependencyDown:
        return False
    return True


def test_a_job_outlives_the_worker_that_is_killed(mill: Mill) -> None:
    mill.start_workers(2)
    job = mill.submit()
    victim = mill.wait_begun(job)
    mill.worker(victim).kill()
    heir = mill.wait_begun(job, attempt=2)
    assert heir != victim
    mill.open_gate()
    mill.check_one_result(job, attempt=2)


def test_a_frozen_worker_that_wakes_late_changes_nothing(mill: Mill) -> None:
    mill.start_workers(2)
    job = mill.submit()
    sleeper = mill.wait_begun(job)
    os.kill(sleeper, signal.SIGSTOP)
    mill.wait_begun(job, attempt=2)
    mill.open_gate()
    mill.wait_done(job)
    os.kill(sleeper, signal.SIGCONT)
    wait_until(lambda: "lease_lost" in log_of(mill, sleeper) or "lost_commit" in log_of(mill, sleeper), 60, "its word")
    mill.check_one_result(job, attempt=2)


def log_of(mill: Mill, pid: int) -> str:
    return mill.worker(pid).log_file.read_text()


def test_no_job_is_lost_with_the_broker(mill: Mill) -> None:
    """It is killed with rings unheard and jobs at work, and comes back with an empty memory."""
    mill.start_workers(2, lease_ttl_s=600)
    before = [mill.submit() for _ in range(6)]
    wait_until(lambda: sum(len(mill.begun(job)) for job in before) >= 2, 120, "both workers at work")
    mill.broker.kill()
    during = [mill.submit() for _ in range(3)]
    mill.open_gate(before[0])
    mill.broker.start()
    after = [mill.submit() for _ in range(3)]
    mill.open_gate()
    for job in (*before, *during, *after):
        mill.check_one_result(job, attempt=1)
        assert len(mill.begun(job)) == 1


def test_work_goes_on_while_the_broker_is_away(mill: Mill) -> None:
    mill.start_workers(1, lease_ttl_s=600)
    mill.broker.kill()
    mill.open_gate()
    job = mill.submit()
    mill.check_one_result(job, attempt=1)


def test_sigterm_drains(mill: Mill) -> None:
    """With a lease of ten minutes, only a worker that let go can explain that another takes the job now."""
    (first,) = mill.start_workers(1, lease_ttl_s=600)
    job = mill.submit()
    assert mill.wait_begun(job) == first.pid
    first.terminate()
    assert first.wait(60), "it didn't go within the grace period"
    assert first.process is not None
    assert first.process.returncode == 0
    given_back = mill.view(job)
    assert (given_back.state, given_back.last_error) == ("queued", "this worker is shutting down")
    mill.start_workers(1)
    mill.open_gate()
    mill.check_one_result(job, attempt=2)


def test_twenty_rings_and_three_workers_make_one_effect(mill: Mill) -> None:
    """The doubled rings carry no key, so that every worker hears some, while the job is at work and when it is done."""
    mill.start_workers(3, lease_ttl_s=600)
    job = mill.submit()
    mill.wait_begun(job)
    ring_everywhere(mill, job, 20)
    time.sleep(3)  # for the idle workers to hear theirs
    assert list(mill.begun(job)) == [1]
    mill.open_gate()
    mill.check_one_result(job, attempt=1)
    ring_everywhere(mill, job, 20)
    mill.check_one_result(mill.submit(), attempt=1)
    assert list(mill.begun(job)) == [1]


def ring_everywhere(mill: Mill, job: CorpusJob, times: int) -> None:
    producer = KafkaProducer(bootstrap_servers=mill.environment["TEXTMILL_BUS_SERVERS"])
    for _ in range(times):
        producer.send(jobs_topic("corpus"), job.job_id.encode()).get(timeout=60)
    producer.close()
