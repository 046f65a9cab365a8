"""The worker loop, promise by promise, on the in-memory store and bus."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from faulty import Clock

from textmill.bus import MemoryBus, MemoryListener, Message
from textmill.contracts.base import new_id
from textmill.contracts.jobs import CorpusJob, Job, JobView, Lease, Output, SynthJob
from textmill.errors import DependencyDown, JobFailed, LeaseLost, Stopped, Transient
from textmill.jobs import Jobs, RetryPolicy
from textmill.store import MemoryStore
from textmill.worker import Handler, JobContext, Pace, Worker

PACE = Pace(heartbeat_s=0.02, recover_every_s=0.05, grace_s=0.3)


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(bus: MemoryBus, clock: Clock) -> Jobs:
    """With a clock that stands still until a test turns it: leases and delays end when the test says so."""
    policy = RetryPolicy(lease_ttl_s=10, max_attempts=3, first_delay_s=60)
    return Jobs(MemoryStore(), ring=bus.ring, bury=bus.bury, policy=policy, now=clock)


def corpus_job(then: tuple[Job, ...] = ()) -> CorpusJob:
    return CorpusJob(document_ids=(new_id("doc"),), then=then)


def make(job: CorpusJob, ctx: JobContext) -> Output:
    return Output(manifest_key=f"corpora/{job.corpus_id}/manifest.json", manifest={"attempt": ctx.attempt})


def obedient(job: CorpusJob, ctx: JobContext) -> Output:
    """Works until it is stopped."""
    while True:
        ctx.raise_if_stopped()
        time.sleep(0.005)


def no_synth(job: SynthJob, ctx: JobContext) -> Output:
    raise JobFailed("this test has no synth jobs")


@contextmanager
def running(
    jobs: Jobs, bus: MemoryBus, handler: Handler, synth: Handler = no_synth, pace: Pace = PACE
) -> Iterator[Worker]:
    worker = Worker(jobs, bus, {"corpus": handler, "synth": synth}, "g", pace)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.drain()
        thread.join(60)
        assert not thread.is_alive(), "the worker didn't drain"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def view(jobs: Jobs, job: Job) -> JobView:
    return jobs.view(job.kind, job.job_id)


def ended(jobs: Jobs, job: Job) -> JobView:
    until(lambda: view(jobs, job).finished)
    return view(jobs, job)


# -- the straight way ----------------------------------------------------------------------------------------------


def test_a_job_is_done_and_committed(jobs: Jobs, bus: MemoryBus) -> None:
    with running(jobs, bus, make):
        job = corpus_job()
        jobs.submit(job)
        assert ended(jobs, job).state == "succeeded"
        until(lambda: jobs.open_count("corpus") == 0)
    assert jobs.store.get(f"corpora/{job.corpus_id}/manifest.json") == b'{"attempt":1}'
    assert bus.queue("corpus").empty(), "its message was not marked as done"


def test_the_next_job_of_a_chain_runs(jobs: Jobs, bus: MemoryBus) -> None:
    last = SynthJob(corpus_id=new_id("cor"))
    middle = corpus_job()
    job = corpus_job(then=(middle, last))

    def synth(job: SynthJob, ctx: JobContext) -> Output:
        return Output(manifest_key=f"datasets/{job.dataset_id}/manifest.json", manifest={})

    with running(jobs, bus, make, synth=synth):
        jobs.submit(job)
        until(lambda: jobs.store.exists(f"jobs/synth/{last.job_id}/spec.json"))
        assert ended(jobs, last).state == "succeeded"
    assert view(jobs, middle).state == "succeeded"


def test_twenty_rings_are_one_attempt(jobs: Jobs, bus: MemoryBus) -> None:
    calls: list[str] = []

    def counting(job: CorpusJob, ctx: JobContext) -> Output:
        calls.append(job.job_id)
        return make(job, ctx)

    job = corpus_job()
    jobs.submit(job)
    for _ in range(20):
        bus.ring("corpus", job.job_id)
    with running(jobs, bus, counting), running(jobs, bus, counting), running(jobs, bus, counting):
        ended(jobs, job)
        until(lambda: bus.queue("corpus").empty())
    assert calls == [job.job_id]


def test_progress_is_shown(jobs: Jobs, bus: MemoryBus) -> None:
    def reporting(job: CorpusJob, ctx: JobContext) -> Output:
        ctx.progress("splitting", 3, 9, "documents", per_s=1.5)
        return obedient(job, ctx)

    with running(jobs, bus, reporting):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: (p := view(jobs, job).progress) is not None and p.stage == "splitting")
        progress = view(jobs, job).progress
    assert progress is not None
    assert (progress.done, progress.total, progress.unit, progress.figures) == (3, 9, "documents", {"per_s": 1.5})


# -- what goes wrong in a job ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"\xff\xfe", b"", b"synth", b"job_12", b"x" * 100_000])
def test_an_undecodable_message_is_buried_and_the_loop_goes_on(jobs: Jobs, bus: MemoryBus, value: bytes) -> None:
    bus.queue("corpus").put(value)
    with running(jobs, bus, make):
        job = corpus_job()
        jobs.submit(job)
        ended(jobs, job)
        until(lambda: len(bus.dead) == 1)
    kind, buried, reason = bus.dead[0]
    assert (kind, buried) == ("corpus", value)
    assert "no job id" in reason
    assert bus.queue("corpus").empty()


def test_a_stored_job_that_cannot_be_read_is_buried_and_hides_no_other(jobs: Jobs, bus: MemoryBus) -> None:
    poison = new_id("job")
    jobs.store.put(f"open/corpus/{poison}.1", b"2026-01-01T00:00:00+00:00")
    jobs.store.put(f"jobs/corpus/{poison}/spec.json", b'{"kind": "corpus", "from_the_future": true}')
    bus.ring("corpus", poison)
    jobs.ring = lambda kind, job_id: None  # the one behind it is found by recovery alone
    job = corpus_job()
    jobs.submit(job)
    with running(jobs, bus, make):
        assert ended(jobs, job).state == "succeeded"
        until(lambda: len(bus.dead) == 1)
    assert poison in bus.dead[0][2]


def test_a_transient_error_is_retried_after_its_delay_until_the_attempts_are_used_up(
    jobs: Jobs, bus: MemoryBus, clock: Clock
) -> None:
    calls: list[int] = []

    def failing(job: CorpusJob, ctx: JobContext) -> Output:
        calls.append(ctx.attempt)
        raise Transient("the LLM timed out")

    with running(jobs, bus, failing):
        job = corpus_job()
        jobs.submit(job)
        for attempt in (1, 2):
            until(lambda: view(jobs, job).not_before is not None and view(jobs, job).state == "queued")
            time.sleep(0.15)  # several looks of recovery, all before the delay is over
            waiting = view(jobs, job)
            assert (waiting.attempts, waiting.last_error, calls[-1]) == (attempt, "the LLM timed out", attempt)
            clock.forward(500)
            until(lambda attempt=attempt: len(calls) > attempt)  # type: ignore[misc]
        result = ended(jobs, job).result
    assert calls == [1, 2, 3]
    assert result is not None
    assert result.failure is not None
    assert (result.state, result.failure.code, result.failure.message) == ("failed", "transient", "the LLM timed out")
    assert bus.dead == [("corpus", job.job_id.encode(), "transient: the LLM timed out")]


def test_the_delay_is_at_least_what_the_other_side_asked_for(jobs: Jobs, bus: MemoryBus, clock: Clock) -> None:
    def failing(job: CorpusJob, ctx: JobContext) -> Output:
        raise Transient("429", retry_after_s=1_000)

    with running(jobs, bus, failing):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: view(jobs, job).not_before is not None)
    not_before = view(jobs, job).not_before
    assert not_before is not None
    assert (not_before - clock()).total_seconds() == 1_000


def test_a_job_that_cannot_be_done_fails_at_once(jobs: Jobs, bus: MemoryBus) -> None:
    def failing(job: CorpusJob, ctx: JobContext) -> Output:
        raise JobFailed("no such document")

    with running(jobs, bus, failing):
        job = corpus_job()
        jobs.submit(job)
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("failed", 1)
    assert bus.dead == [("corpus", job.job_id.encode(), "job_failed: no such document")]


def test_a_handler_that_returns_nothing_has_failed(jobs: Jobs, bus: MemoryBus) -> None:
    with running(jobs, bus, lambda job, ctx: None):  # type: ignore[arg-type, return-value]
        job = corpus_job()
        jobs.submit(job)
        result = ended(jobs, job).result
    assert result is not None
    assert result.failure is not None
    assert "returned nothing" in result.failure.message


def test_an_unexpected_error_is_retried(jobs: Jobs, bus: MemoryBus, clock: Clock) -> None:
    def clumsy(job: CorpusJob, ctx: JobContext) -> Output:
        if ctx.attempt == 1:
            raise KeyError("spam")
        return make(job, ctx)

    with running(jobs, bus, clumsy):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: view(jobs, job).last_error == "KeyError: 'spam'")
        clock.forward(500)
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("succeeded", 2)


def test_a_dependency_that_is_down_costs_no_attempt_and_longer_pauses_each_time(
    jobs: Jobs, bus: MemoryBus, clock: Clock
) -> None:
    jobs.policy = RetryPolicy(lease_ttl_s=10, max_attempts=1)
    delays: list[float] = []

    def thirsty(job: CorpusJob, ctx: JobContext) -> Output:
        if ctx.attempt < 3:
            raise DependencyDown("no LLM", retry_after_s=0)
        return make(job, ctx)

    with running(jobs, bus, thirsty):
        job = corpus_job()
        jobs.submit(job)
        for attempt in (1, 2):
            until(lambda attempt=attempt: _released(jobs, job, attempt))  # type: ignore[misc]
            not_before = view(jobs, job).not_before
            assert not_before is not None
            delays.append((not_before - clock()).total_seconds())
            clock.forward(5)
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("succeeded", 3)
    assert delays == [0.5, 1.0]


def _released(jobs: Jobs, job: Job, attempt: int) -> bool:
    seen = view(jobs, job)
    return seen.attempts == attempt and seen.not_before is not None


# -- stopping --------------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_the_handler(jobs: Jobs, bus: MemoryBus) -> None:
    with running(jobs, bus, obedient):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: view(jobs, job).state == "running")
        assert jobs.cancel("corpus", job.job_id).state == "running"
        assert ended(jobs, job).state == "cancelled"


def test_a_drain_gives_the_job_back_and_another_worker_takes_it(jobs: Jobs, bus: MemoryBus) -> None:
    with running(jobs, bus, obedient):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: view(jobs, job).state == "running")
    given_back = view(jobs, job)
    assert (given_back.state, given_back.last_error) == ("queued", "this worker is shutting down")
    with running(jobs, bus, make):
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("succeeded", 2)
    lease = Lease.model_validate_json(jobs.store.get(f"jobs/corpus/{job.job_id}/1/claim-000002.json"))
    assert lease.faults == 0, "the drain was counted as a fault"


def test_a_handler_that_does_not_stop_is_left_behind(jobs: Jobs, bus: MemoryBus) -> None:
    release = threading.Event()

    def deaf(job: CorpusJob, ctx: JobContext) -> Output:
        release.wait(600)
        return make(job, ctx)

    with running(jobs, bus, deaf):  # its end is awaited for a tenth of that
        job = corpus_job()
        jobs.submit(job)
        until(lambda: view(jobs, job).state == "running")
    assert view(jobs, job).state == "queued"
    release.set()


def test_a_worker_goes_on_after_a_cancelled_handler_that_does_not_stop(jobs: Jobs, bus: MemoryBus) -> None:
    release = threading.Event()
    stuck, fine = corpus_job(), corpus_job()

    def half_deaf(job: CorpusJob, ctx: JobContext) -> Output:
        if job.job_id == stuck.job_id:
            release.wait(600)
        return make(job, ctx)

    with running(jobs, bus, half_deaf):
        jobs.submit(stuck)
        until(lambda: view(jobs, stuck).state == "running")
        jobs.cancel("corpus", stuck.job_id)
        jobs.submit(fine)
        assert ended(jobs, fine).state == "succeeded"
        release.set()
    assert view(jobs, stuck).state == "cancelled"
    assert not jobs.store.exists(f"corpora/{stuck.corpus_id}/manifest.json")


@pytest.mark.parametrize("obeys", [True, False])
def test_a_worker_that_lost_its_lease_loses_the_commit(bus: MemoryBus, obeys: bool) -> None:
    """The sleeper's clock stands still, so its heartbeats look old to the other, whose clock has gone on."""
    store, sleepers_clock, others_clock = MemoryStore(), Clock(), Clock()
    sleeping, other = (Jobs(store, policy=RetryPolicy(lease_ttl_s=10), now=c) for c in (sleepers_clock, others_clock))
    wake, stopped = threading.Event(), list[Stopped]()

    def sleeper(job: CorpusJob, ctx: JobContext) -> Output:
        wake.wait(600)
        if obeys:
            ctx.stopping.wait(60)
        try:
            ctx.raise_if_stopped()
        except Stopped as exc:
            stopped.append(exc)
            if obeys:
                raise
        return make(job, ctx)

    with running(sleeping, bus, sleeper):
        job = corpus_job()
        sleeping.submit(job)
        until(lambda: view(sleeping, job).state == "running")
        others_clock.forward(60)
        with running(other, MemoryBus(), make):
            assert ended(other, job).state == "succeeded"
        wake.set()
        until(lambda: bool(stopped) or not obeys)
    result = view(other, job).result
    assert result is not None
    assert (result.state, result.attempt) == ("succeeded", 2)
    assert store.get(f"corpora/{job.corpus_id}/manifest.json") == b'{"attempt":2}'
    assert not obeys or isinstance(stopped[0], LeaseLost)


# -- lost rings, lost brokers, lost stores -----------------------------------------------------------------------------


def test_a_job_whose_ring_was_lost_is_found(jobs: Jobs, bus: MemoryBus) -> None:
    jobs.ring = lambda kind, job_id: None
    waiting = [corpus_job() for _ in range(5)]
    with running(jobs, bus, make):
        for job in waiting:
            jobs.submit(job)
        for job in waiting:
            assert ended(jobs, job).state == "succeeded"


class DeadBus(MemoryBus):
    """A broker that nobody reaches."""

    def ring(self, kind: str, job_id: str) -> None:
        raise DependencyDown("no broker")

    def bury(self, kind: str, value: bytes, reason: str) -> None:
        raise DependencyDown("no broker")

    def listen(self, kinds: Sequence[str], group: str) -> MemoryListener:
        raise DependencyDown("no broker")


def test_jobs_are_done_without_a_broker(clock: Clock) -> None:
    bus = DeadBus()
    jobs = Jobs(MemoryStore(), ring=bus.ring, bury=bus.bury, now=clock)

    def picky(job: CorpusJob, ctx: JobContext) -> Output:
        if job.crawl_ids:
            raise JobFailed("no crawls here")
        return make(job, ctx)

    good, bad = corpus_job(), CorpusJob(crawl_ids=(new_id("crl"),))
    with running(jobs, bus, picky):
        jobs.submit(good)
        jobs.submit(bad)
        assert ended(jobs, good).state == "succeeded"
        assert ended(jobs, bad).state == "failed"


class BrittleListener(MemoryListener):
    """Broken for good in some ways, with errors that no client library should let through."""

    def __init__(self, bus: "BrittleBus", kinds: Sequence[str], broken: set[str]) -> None:
        super().__init__(bus, kinds)
        self._broken = broken
        self._tripped = bus.tripped

    def _break(self, way: str) -> None:
        if way in self._broken:
            self._tripped.add(way)
            raise AttributeError(f"{way} fell over None")

    def wait(self, timeout_s: float) -> Message | None:
        self._break("wait")
        return super().wait(timeout_s)

    def keep_alive(self) -> None:
        self._break("keep_alive")

    def done(self, message: Message) -> None:
        self._break("done")
        super().done(message)

    def close(self) -> None:
        super().close()
        self._break("close")


class BrittleBus(MemoryBus):
    """Its first listeners are broken, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = [{"wait"}, {"keep_alive"}, {"done", "close"}]
        self.tripped: set[str] = set()

    def listen(self, kinds: Sequence[str], group: str) -> MemoryListener:
        return BrittleListener(self, kinds, self.broken.pop(0) if self.broken else set())


def test_a_listener_that_breaks_is_replaced_and_costs_no_attempt(jobs: Jobs) -> None:
    bus = BrittleBus()
    jobs.ring = bus.ring

    def slow(job: CorpusJob, ctx: JobContext) -> Output:
        until(lambda: "keep_alive" in bus.tripped)  # at the latest with the second heartbeat
        return make(job, ctx)

    deaf_but_for_rings = Pace(heartbeat_s=0.02, recover_every_s=1_000, grace_s=0.3)
    with running(jobs, bus, slow, pace=deaf_but_for_rings):
        until(lambda: "wait" in bus.tripped)
        for _ in range(3):
            job = corpus_job()
            jobs.submit(job)
            done = ended(jobs, job)
            assert (done.state, done.attempts) == ("succeeded", 1)
    assert bus.tripped == {"wait", "keep_alive", "done", "close"}


class FlakyStore(MemoryStore):
    """Down for as many calls as a test says."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error or DependencyDown("no store")
        self.down_for = 0
        self.refused = 0

    def _knock(self) -> None:
        if self.down_for > 0:
            self.down_for -= 1
            self.refused += 1
            raise self.error

    def create(self, key: str, data: bytes) -> bool:
        self._knock()
        return super().create(key, data)

    def put(self, key: str, data: bytes) -> None:
        self._knock()
        super().put(key, data)

    def get(self, key: str) -> bytes:
        self._knock()
        return super().get(key)


def test_a_result_waits_for_a_store_that_is_down(bus: MemoryBus) -> None:
    store = FlakyStore()
    jobs = Jobs(store, ring=bus.ring)

    def worked(job: CorpusJob, ctx: JobContext) -> Output:
        store.down_for = 3
        return make(job, ctx)

    with running(jobs, bus, worked):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: store.refused >= 3)
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("succeeded", 1)


@pytest.mark.parametrize("error", [DependencyDown("no store"), ValueError("a fault of ours")])
def test_the_loop_outlives_a_store_that_fails(
    bus: MemoryBus, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    store = FlakyStore(error)
    jobs = Jobs(store, ring=bus.ring)
    job = corpus_job()
    jobs.submit(job)
    store.down_for = 1
    with running(jobs, bus, make):
        until(lambda: store.refused == 1)
        assert ended(jobs, job).state == "succeeded"
    assert ("worker loop failed" in caplog.text) == isinstance(error, ValueError)


def test_missed_heartbeats_stop_no_handler(bus: MemoryBus) -> None:
    store = FlakyStore()
    jobs = Jobs(store, ring=bus.ring)
    go_on = threading.Event()

    def patient(job: CorpusJob, ctx: JobContext) -> Output:
        store.down_for = 3
        go_on.wait(60)
        ctx.raise_if_stopped()
        return make(job, ctx)

    with running(jobs, bus, patient):
        job = corpus_job()
        jobs.submit(job)
        until(lambda: store.refused >= 3)
        go_on.set()
        done = ended(jobs, job)
    assert (done.state, done.attempts) == ("succeeded", 1)
