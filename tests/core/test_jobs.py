"""The life of a job, promise by promise, on the in-memory store."""

import pytest
from faulty import Clock

from textmill.contracts.base import new_id
from textmill.contracts.jobs import CorpusJob, DeployJob, Job, Output, Progress, SynthJob
from textmill.errors import Conflict, DependencyDown, IdempotencyClash, JobFailed, LeaseLost, NotFound
from textmill.jobs import Attempt, Jobs, RetryPolicy
from textmill.store import MemoryStore


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> Jobs:
    return Jobs(MemoryStore(), policy=RetryPolicy(lease_ttl_s=10, max_attempts=3), now=clock)


def synth_job(then: tuple[Job, ...] = ()) -> SynthJob:
    return SynthJob(corpus_id=new_id("cor"), then=then)


def output(job: SynthJob, word: str = "made") -> Output:
    return Output(manifest_key=f"datasets/{job.dataset_id}/manifest.json", manifest={"what": word})


def claim(jobs: Jobs, job: Job, worker: str = "w1") -> Attempt:
    attempt = jobs.claim(job.kind, job.job_id, worker)
    assert attempt is not None
    return attempt


def test_submission_stores_marks_and_rings(jobs: Jobs) -> None:
    rung: list[tuple[str, str]] = []
    jobs.ring = lambda kind, job_id: rung.append((kind, job_id))
    job = jobs.submit(synth_job())
    assert rung == [("synth", job.job_id)]
    assert list(jobs.recover("synth")) == [job.job_id]
    assert jobs.view("synth", job.job_id).state == "queued"


def test_a_broken_bell_loses_nothing(jobs: Jobs) -> None:
    def broken(kind: str, job_id: str) -> None:
        raise DependencyDown("no broker")

    jobs.ring = broken
    job = jobs.submit(synth_job())
    assert list(jobs.recover("synth")) == [job.job_id]


def test_the_same_key_gives_the_same_job_and_refuses_another_body(jobs: Jobs) -> None:
    first = jobs.submit(synth_job(), "key", "body-1")
    assert jobs.submit(synth_job(), "key", "body-1") == first
    with pytest.raises(IdempotencyClash, match="another body"):
        jobs.submit(synth_job(), "key", "body-2")
    assert len(list(jobs.job_ids("synth"))) == 1


def test_an_id_that_is_taken_is_a_conflict(jobs: Jobs) -> None:
    job = jobs.submit(synth_job())
    assert jobs.submit(job) == job
    with pytest.raises(Conflict, match=job.job_id):
        jobs.submit(synth_job().model_copy(update={"job_id": job.job_id}))


def test_one_worker_holds_a_job(jobs: Jobs, clock: Clock) -> None:
    job = jobs.submit(synth_job())
    claim(jobs, job)
    assert jobs.claim("synth", job.job_id, "w2") is None
    assert list(jobs.recover("synth")) == []
    assert jobs.view("synth", job.job_id).state == "running"


def test_a_lapsed_lease_is_taken_over_and_the_sleeper_loses(jobs: Jobs, clock: Clock) -> None:
    job = jobs.submit(synth_job())
    sleeper = claim(jobs, job, "sleeper")
    clock.forward(11)
    assert list(jobs.recover("synth")) == [job.job_id]
    second = claim(jobs, job, "second")
    assert second.number == 2
    with pytest.raises(LeaseLost, match="taken over"):
        jobs.renew(sleeper, Progress())
    assert jobs.succeed(second, output(job, "second")).attempt == 2
    assert jobs.succeed(sleeper, output(job, "second")).attempt == 2
    assert jobs.store.get(output(job).manifest_key) == b'{"what":"second"}'


def test_renewal_keeps_the_lease_and_shows_progress(jobs: Jobs, clock: Clock) -> None:
    job = jobs.submit(synth_job())
    attempt = claim(jobs, job)
    for _ in range(5):
        clock.forward(8)
        jobs.renew(attempt, Progress(stage="asking", done=3, total=9, unit="calls"))
        assert jobs.claim("synth", job.job_id, "w2") is None
    progress = jobs.view("synth", job.job_id).progress
    assert progress is not None
    assert (progress.stage, progress.done, progress.total) == ("asking", 3, 9)


def test_success_writes_the_manifest_and_starts_the_next_job(jobs: Jobs) -> None:
    last = DeployJob(name="zhouyi", model_id=new_id("mdl"))
    middle = synth_job()
    job = jobs.submit(synth_job(then=(middle, last)))
    jobs.succeed(claim(jobs, job), output(job))
    view = jobs.view("synth", job.job_id)
    assert (view.state, view.next_job_id) == ("succeeded", middle.job_id)
    assert list(jobs.recover("synth")) == [middle.job_id]
    follower = jobs.view("synth", middle.job_id).job
    assert [j.job_id for j in follower.then] == [last.job_id]
    with pytest.raises(NotFound):
        jobs.view("deploy", last.job_id)


def test_failure_stops_the_chain_until_it_is_replayed(jobs: Jobs) -> None:
    buried: list[tuple[str, bytes, str]] = []
    jobs.bury = lambda kind, value, reason: buried.append((kind, value, reason))
    following = synth_job()
    job = jobs.submit(synth_job(then=(following,)))
    jobs.fail(claim(jobs, job), JobFailed("no such corpus"))
    assert buried == [("synth", job.job_id.encode(), "job_failed: no such corpus")]
    assert list(jobs.recover("synth")) == []
    assert jobs.replay("synth", job.job_id).state == "queued"
    assert jobs.view("synth", job.job_id).life == 2
    jobs.succeed(claim(jobs, job), output(job))
    assert jobs.view("synth", following.job_id).state == "queued"
    with pytest.raises(Conflict, match="succeeded"):
        jobs.replay("synth", job.job_id)


def test_retries_wait_and_are_counted(jobs: Jobs, clock: Clock) -> None:
    job = jobs.submit(synth_job())
    for number in (1, 2, 3):
        attempt = claim(jobs, job)
        assert (attempt.number, jobs.is_last(attempt)) == (number, number == 3)
        jobs.release(attempt, "the LLM timed out", counted=True, delay_s=30)
        assert jobs.claim("synth", job.job_id, "w") is None
        assert list(jobs.recover("synth")) == []
        clock.forward(31)
    assert jobs.claim("synth", job.job_id, "w") is None
    view = jobs.view("synth", job.job_id)
    assert view.result is not None
    assert view.result.failure is not None
    assert view.result.failure.code == "attempts_exhausted"
    assert "timed out" in view.result.failure.message


def test_draining_and_pausing_burn_no_attempt(jobs: Jobs) -> None:
    job = jobs.submit(synth_job())
    for _ in range(10):
        jobs.release(claim(jobs, job), "draining", counted=False, delay_s=0)
    assert claim(jobs, job).lease.faults == 0


def test_a_worker_that_vanishes_counts_as_a_fault(jobs: Jobs, clock: Clock) -> None:
    job = jobs.submit(synth_job())
    for _ in range(3):
        claim(jobs, job)
        clock.forward(11)
    assert jobs.claim("synth", job.job_id, "w") is None
    assert jobs.view("synth", job.job_id).state == "failed"


def test_cancel_ends_a_waiting_job_at_once_and_a_running_one_at_its_next_beat(jobs: Jobs) -> None:
    waiting, running = jobs.submit(synth_job()), jobs.submit(synth_job())
    assert jobs.cancel("synth", waiting.job_id).state == "cancelled"
    attempt = claim(jobs, running)
    assert jobs.cancel("synth", running.job_id).state == "running"
    jobs.renew(attempt, Progress())
    assert attempt.cancelled
    jobs.end_cancelled(attempt)
    assert jobs.view("synth", running.job_id).state == "cancelled"
    assert list(jobs.recover("synth")) == []


def test_a_manifest_of_another_job_is_never_taken_for_ours(jobs: Jobs) -> None:
    first = jobs.submit(synth_job())
    second = jobs.submit(synth_job().model_copy(update={"dataset_id": first.dataset_id}))
    jobs.succeed(claim(jobs, first), output(first, "first"))
    with pytest.raises(Conflict, match="another job"):
        jobs.succeed(claim(jobs, second), output(second, "second"))


def test_scratch_is_swept(jobs: Jobs) -> None:
    job = jobs.submit(synth_job())
    attempt = claim(jobs, job)
    jobs.store.put(f"{attempt.scratch}part", b"x")
    jobs.succeed(attempt, output(job))
    assert list(jobs.store.list("scratch/")) == []


def test_an_orphaned_marker_is_swept_after_an_hour(jobs: Jobs, clock: Clock) -> None:
    jobs.store.put(f"open/synth/{new_id('job')}.1", clock().isoformat().encode())
    assert list(jobs.recover("synth")) == []
    assert len(list(jobs.store.list("open/"))) == 1
    clock.forward(3_601)
    assert list(jobs.recover("synth")) == []
    assert list(jobs.store.list("open/")) == []


def test_jobs_are_listed_in_pages(jobs: Jobs) -> None:
    ids = [jobs.submit(CorpusJob(document_ids=(new_id("doc"),))).job_id for _ in range(5)]
    assert list(jobs.job_ids("corpus")) == ids
    assert list(jobs.job_ids("corpus", after=ids[2])) == ids[3:]


def test_backoff_grows_within_bounds() -> None:
    policy = RetryPolicy(first_delay_s=2, max_delay_s=300)
    for faults in range(40):
        delay = policy.delay_s(faults)
        ceiling = min(300, 2 * 2**faults)
        assert ceiling / 2 <= delay <= ceiling
    assert policy.delay_s(0, at_least_s=60) == 60
