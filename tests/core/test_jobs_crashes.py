"""Crashes between any two writes, lost and doubled messages: no job lost, one result each.

Hypothesis plays clients, workers and the owner, any of which may die at any write; then everyone recovers, and the
promises must hold.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from faulty import Clock, Crash, CrashingStore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from textmill.contracts.base import new_id
from textmill.contracts.jobs import Output, Progress, SynthJob
from textmill.errors import Conflict, JobFailed, LeaseLost
from textmill.jobs import Attempt, Jobs, RetryPolicy

crash_points = st.one_of(st.none(), st.integers(min_value=0, max_value=15))
choices = st.integers(min_value=0, max_value=7)


class JobLife(RuleBasedStateMachine):
    submitted = Bundle("submitted")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.store = CrashingStore()
        self.bell: list[str] = []
        policy = RetryPolicy(lease_ttl_s=10, max_attempts=1_000)
        self.jobs = Jobs(self.store, ring=lambda kind, job_id: self.bell.append(job_id), policy=policy, now=self.clock)
        self.attempts: list[Attempt] = []
        self.promised: dict[str, SynthJob] = {}
        self.manifests: dict[str, bytes] = {}

    @rule(target=submitted, crash=crash_points, chained=st.booleans())
    def submit(self, crash: int | None, chained: bool) -> SynthJob:
        following = (SynthJob(corpus_id=new_id("cor")),) if chained else ()
        job = SynthJob(corpus_id=new_id("cor"), then=following)
        with self._crashing(crash):
            self.jobs.submit(job)
            self.promised[job.job_id] = job
        return job

    @contextmanager
    def _crashing(self, step: int | None) -> Iterator[None]:
        """Whatever goes on inside is killed at that step, if it gets so far."""
        self.store.crash_in = step
        with suppress(Crash):
            yield
        self.store.crash_in = None

    @rule(choice=choices, lose=st.booleans(), crash=crash_points)
    def hear(self, choice: int, lose: bool, crash: int | None) -> None:
        """A message is lost, delivered, or delivered twice."""
        if not self.bell:
            return
        job_id = self.bell[choice % len(self.bell)]
        if lose:
            self.bell.remove(job_id)
            return
        self._claim(job_id, crash)

    @rule(crash=crash_points)
    def recover(self, crash: int | None) -> None:
        waiting: list[str] = []
        with self._crashing(crash):
            waiting = list(self.jobs.recover("synth"))
        for job_id in waiting:
            self._claim(job_id, None)

    def _claim(self, job_id: str, crash: int | None) -> None:
        attempt = None
        with self._crashing(crash):
            attempt = self.jobs.claim("synth", job_id, "worker")
        if attempt is not None:
            self.attempts.append(attempt)

    @rule(choice=choices, crash=crash_points, kind=st.sampled_from("ssrfc"))
    def finish(self, choice: int, crash: int | None, kind: str) -> None:
        """Some attempt, maybe one that slept through its lease, ends in one of the possible ways."""
        if not self.attempts:
            return
        attempt = self.attempts[choice % len(self.attempts)]
        self.attempts.remove(attempt)
        with self._crashing(crash):
            self._end(attempt, kind)

    @rule(job=submitted, crash=crash_points, kind=st.sampled_from("ssrfc"))
    def work_off(self, job: SynthJob, crash: int | None, kind: str) -> None:
        """A worker takes a job and ends it at once."""
        held = len(self.attempts)
        self._claim(job.job_id, None)
        if len(self.attempts) > held:
            with self._crashing(crash):
                self._end(self.attempts.pop(), kind)

    def _end(self, attempt: Attempt, kind: str) -> None:
        if kind == "s":
            self.jobs.succeed(attempt, self._output(attempt))
        elif kind == "r":
            self.jobs.release(attempt, "timed out", counted=True, delay_s=5)
        elif kind == "f":
            self.jobs.fail(attempt, JobFailed("bad data"))
        else:
            self.jobs.cancel("synth", attempt.job.job_id)

    @staticmethod
    def _output(attempt: Attempt) -> Output:
        assert isinstance(attempt.job, SynthJob)
        made_by = {"attempt": attempt.number, "life": attempt.life}
        return Output(manifest_key=f"datasets/{attempt.job.dataset_id}/manifest.json", manifest=made_by)

    @rule()
    def beat(self) -> None:
        for attempt in list(self.attempts):
            try:
                self.jobs.renew(attempt, Progress())
            except LeaseLost:
                self.attempts.remove(attempt)

    @rule(job=submitted, crash=crash_points)
    def replay(self, job: SynthJob, crash: int | None) -> None:
        if job.job_id not in self.promised:
            return
        with self._crashing(crash), suppress(Conflict):
            self.jobs.replay("synth", job.job_id)

    @rule(seconds=st.sampled_from([1, 6, 11]))
    def time_passes(self, seconds: int) -> None:
        self.clock.forward(seconds)

    def teardown(self) -> None:
        """All crash no more: recovery alone, without one message, must bring every job to its one result."""
        if not hasattr(self, "store"):
            return
        self.store.crash_in = None
        for _ in range(6):
            self.clock.forward(3_700)
            for job_id in list(self.jobs.recover("synth")):
                attempt = self.jobs.claim("synth", job_id, "last")
                if attempt is not None:
                    self.jobs.succeed(attempt, self._output(attempt))
        self._check()

    def _check(self) -> None:
        known = list(self.jobs.job_ids("synth"))
        assert set(self.promised) <= set(known), "a promised job was lost"
        assert list(self.store.list("open/")) == [], "a marker was left"
        for job_id in known:
            view = self.jobs.view("synth", job_id)
            assert view.result is not None, "a job was left without a result"
            job = view.job
            assert isinstance(job, SynthJob)
            manifest_key = f"datasets/{job.dataset_id}/manifest.json"
            assert self.store.exists(manifest_key) == (view.state == "succeeded")
            assert self.store.created.get(manifest_key, 0) <= 1
            if view.state == "succeeded":
                assert view.result.output is not None
                written = json.loads(self.store.get(manifest_key))
                assert written == {"attempt": view.result.attempt, "life": view.life}
                assert view.next_job_id is None or view.next_job_id in known, "a follower was lost"


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(
    max_examples=600, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
