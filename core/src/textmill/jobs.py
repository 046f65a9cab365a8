"""The life of a job, in objects of the store: submit, claim, renew, release, commit, settle, cancel, replay, recover.

A job has one *life*, and one more for each replay; a life ends with its result. All of it lies under
``jobs/<kind>/<id>/``::

    spec.json                what was asked; its create-only write is the submission
    <life>/opened.json       from the second life on
    <life>/claim-<n>.json    an attempt was taken; create-only, so one worker has it
    <life>/lease-<n>.json    the attempt's sign of life, rewritten by its holder
    <life>/cancel.json       the owner wants it to end
    <life>/result.json       how it ended; its create-only write is the commit

and ``open/<kind>/<id>.<life>`` marks a life that isn't settled yet. A marker is written before what it marks and
deleted after what follows, so a crash between any two writes leaves a job that recovery finishes: work may run
twice, effects happen once. Knows neither Kafka nor HTTP; ``ring`` is whatever wakes a worker.
"""

import hashlib
import logging
import os
import random
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import TypeAdapter, ValidationError

from textmill import tracing
from textmill.contracts.base import new_id, utc_now
from textmill.contracts.jobs import Failure, Job, JobState, JobView, Lease, Output, Progress, Result
from textmill.errors import Conflict, DependencyDown, IdempotencyClash, JobFailed, LeaseLost, NotFound, TextmillError
from textmill.store import ObjectStore
from textmill.telemetry import DEAD_LETTERS, RINGS_FAILED

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_JOB_ID = re.compile(r"^job_[0-9a-f]{32}$")
_ORPHAN_AFTER = timedelta(hours=1)
Ring = Callable[[str, str], None]
"""Wakes a worker for (kind, job id)."""
Bury = Callable[[str, bytes, str], None]
"""Puts (kind, message, reason) where dead letters lie."""
log = logging.getLogger(__name__)


def parse_job(data: bytes | str) -> Job:
    return _JOB.validate_json(data)


def parse_job_id(value: bytes) -> str:
    """The job id in a message. Raises ``JobFailed`` for anything else."""
    text = value.decode("ascii", errors="replace")
    if not _JOB_ID.fullmatch(text):
        raise JobFailed(f"message {text[:80]!r} is no job id; a message is 'job_' and 32 hex digits, nothing else")
    return text


@dataclass(frozen=True)
class RetryPolicy:
    """``lease_ttl_s`` bounds how long a dead worker's job waits; the clocks of two workers may differ by less."""

    lease_ttl_s: float = 15.0
    max_attempts: int = 5
    first_delay_s: float = 2.0
    max_delay_s: float = 300.0

    def delay_s(self, faults: int, at_least_s: float | None = None) -> float:
        """Exponential backoff with jitter of half the delay, after ``faults`` failed attempts."""
        delay = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(faults, 32))
        return max(at_least_s or 0.0, delay * random.uniform(0.5, 1.0))


@dataclass(frozen=True)
class _Life:
    """One reading of what the store says of a job's latest life."""

    job: Job
    number: int
    attempts: int
    lease: Lease | None
    cancelled: bool
    result: Result | None

    @property
    def prefix(self) -> str:
        return f"{job_prefix(self.job.kind, self.job.job_id)}{self.number}/"

    def holder_is_live(self, now: datetime) -> bool:
        return self.lease is not None and self.lease.live(now)

    def faults(self) -> int:
        if self.lease is None:
            return 0
        return self.lease.faults + (1 if self.lease.counted else 0)


@dataclass
class Attempt:
    """A claimed attempt. Its holder alone may renew, release or commit it."""

    job: Job
    life: int
    number: int
    lease: Lease
    cancelled: bool = False

    @property
    def prefix(self) -> str:
        return f"{job_prefix(self.job.kind, self.job.job_id)}{self.life}/"

    @property
    def scratch(self) -> str:
        """A key prefix that belongs to this attempt alone, swept when the job is settled."""
        return f"{scratch_prefix(self.job)}{self.life}-{self.number}/"


def job_prefix(kind: str, job_id: str) -> str:
    return f"jobs/{kind}/{job_id}/"


def scratch_prefix(job: Job) -> str:
    return f"scratch/{job.job_id}/"


def _marker_key(kind: str, job_id: str, life: int) -> str:
    return f"open/{kind}/{job_id}.{life}"


@dataclass
class Jobs:
    """Every method raises ``DependencyDown`` when the store is; each may be called again after a crash anywhere."""

    store: ObjectStore
    ring: Ring = lambda kind, job_id: None
    bury: Bury = lambda kind, job_id, reason: None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    now: Callable[[], datetime] = utc_now

    # -- the owner's side ------------------------------------------------------------------------------------------

    def submit(self, job: Job, idempotency_key: str | None = None, body_sha256: str = "") -> Job:
        """Store the job, then wake a worker. Returns the job that was stored, the earlier one for a known key.

        Raises:
            IdempotencyClash: the key came before, with another body.
            Conflict: another job has this id.
        """
        if job.traceparent is None:
            job = job.model_copy(update={"traceparent": tracing.traceparent()})
        if idempotency_key is not None:
            job = self._reserve(job, idempotency_key, body_sha256)
        stored = self._open(job)
        if stored.model_copy(update={"submitted_at": job.submitted_at, "traceparent": job.traceparent}) != job:
            raise Conflict(
                f"job {job.job_id} exists already and asks for something else; leave job_id out to get a new one"
            )
        return stored

    def _open(self, job: Job) -> Job:
        spec_key = f"{job_prefix(job.kind, job.job_id)}spec.json"
        if not self.store.exists(spec_key):
            self.store.put(_marker_key(job.kind, job.job_id, 1), self.now().isoformat().encode())
            self.store.create(spec_key, job.to_json())
        stored = parse_job(self.store.get(spec_key))
        with tracing.span(f"ring {stored.kind}", "producer", stored.traceparent, {"textmill.job.id": stored.job_id}):
            self._wake(stored.kind, stored.job_id)
        return stored

    def _wake(self, kind: str, job_id: str) -> None:
        """A lost ring costs time, not the job: recovery finds the open marker."""
        try:
            self.ring(kind, job_id)
        except DependencyDown as exc:
            RINGS_FAILED.labels(kind).inc()
            log.warning("the bell didn't ring", extra={"job_id": job_id, "error": str(exc)})

    def _reserve(self, job: Job, idempotency_key: str, body_sha256: str) -> Job:
        key = f"idempotency/{job.kind}/{_safe(idempotency_key)}"
        self.store.create(key, f"{body_sha256} {job.to_json().decode()}".encode())
        known_sha256, _, known_job = self.store.get(key).decode().partition(" ")
        if known_sha256 != body_sha256:
            raise IdempotencyClash("this Idempotency-Key came before with another body; use a new key for a new job")
        return parse_job(known_job)

    def view(self, kind: str, job_id: str) -> JobView:
        """Raises ``NotFound``."""
        life = self._read(kind, job_id)
        lease = life.lease
        following = life.job.next_job()
        return JobView(
            job=life.job,
            state=self._state(life),
            life=life.number,
            attempts=life.attempts,
            cancel_requested=life.cancelled,
            progress=lease.progress if lease else None,
            worker=lease.worker if lease else None,
            started_at=lease.started_at if lease else None,
            not_before=lease.not_before if lease else None,
            last_error=lease.error if lease else None,
            result=life.result,
            next_job_id=following.job_id if following else None,
        )

    def _state(self, life: _Life) -> JobState:
        if life.result is not None:
            return life.result.state
        return "running" if life.holder_is_live(self.now()) else "queued"

    def job_ids(self, kind: str, after: str = "") -> Iterator[str]:
        """All jobs of a kind, oldest first, from the first past ``after``."""
        prefix = f"jobs/{kind}/"
        last = ""
        for item in self.store.list(prefix, after=f"{prefix}{after}/~" if after else ""):
            job_id = item.key.removeprefix(prefix).partition("/")[0]
            if job_id != last and item.key.endswith("/spec.json"):
                last = job_id
                yield job_id

    def cancel(self, kind: str, job_id: str) -> JobView:
        """Ask for the end. A running attempt sees it at its next heartbeat; a waiting job ends at once."""
        life = self._read(kind, job_id)
        if life.result is None:
            self.store.create(f"{life.prefix}cancel.json", b"{}")
            if not life.holder_is_live(self.now()):
                self._finish(life, Result(state="cancelled", attempt=life.attempts, finished_at=self.now()))
        return self.view(kind, job_id)

    def replay(self, kind: str, job_id: str) -> JobView:
        """Give a failed or cancelled job a new life; a job that still waits is rung for again.

        Raises:
            Conflict: the job has succeeded.
        """
        life = self._read(kind, job_id)
        number = life.number
        if life.result is not None:
            if life.result.state == "succeeded":
                raise Conflict(f"job {job_id} has succeeded; submit a new job to do it again")
            self.settle(life.job, life.number, life.result)
            number += 1
        self.store.put(_marker_key(kind, job_id, number), self.now().isoformat().encode())
        if number > life.number:
            self.store.create(f"{job_prefix(kind, job_id)}{number}/opened.json", b"{}")
        self._wake(kind, job_id)
        return self.view(kind, job_id)

    # -- the worker's side -----------------------------------------------------------------------------------------

    def claim(self, kind: str, job_id: str, worker: str) -> Attempt | None:
        """Take the job's next attempt. None when there is nothing to do: finished, held, not due yet, or unknown."""
        try:
            life = self._read(kind, job_id)
        except NotFound:
            return None
        now = self.now()
        if life.result is not None:
            self.settle(life.job, life.number, life.result)
            return None
        if life.holder_is_live(now) or self._too_early(life, now):
            return None
        if life.cancelled:
            self._finish(life, Result(state="cancelled", attempt=life.attempts, finished_at=now))
            return None
        if life.faults() >= self.policy.max_attempts:
            self._finish(life, self._exhausted(life))
            return None
        return self._take(life, worker, now)

    def _take(self, life: _Life, worker: str, now: datetime) -> Attempt | None:
        number = life.attempts + 1
        lease = Lease(
            attempt=number,
            worker=worker,
            started_at=now,
            renewed_at=now,
            ttl_s=self.policy.lease_ttl_s,
            faults=life.faults(),
        )
        if not self.store.create(f"{life.prefix}claim-{number:06d}.json", lease.to_json()):
            return None
        return Attempt(life.job, life.number, number, lease)

    def renew(self, attempt: Attempt, progress: Progress) -> None:
        """Show life and progress; sets ``attempt.cancelled`` when the owner wants the end.

        Raises:
            LeaseLost: another worker has taken the job over, or it is finished.
        """
        attempt.lease = attempt.lease.model_copy(update={"renewed_at": self.now(), "progress": progress})
        self._put_lease(attempt)
        names = {item.key.removeprefix(attempt.prefix) for item in self.store.list(attempt.prefix)}
        if f"claim-{attempt.number + 1:06d}.json" in names or "result.json" in names:
            raise LeaseLost(f"{attempt.job.job_id} was taken over while attempt {attempt.number} was silent")
        attempt.cancelled = "cancel.json" in names

    def release(self, attempt: Attempt, error: str, counted: bool, delay_s: float) -> None:
        """Let go, so that any worker may take the next attempt after ``delay_s``."""
        attempt.lease = attempt.lease.model_copy(
            update={
                "renewed_at": self.now(),
                "released": True,
                "counted": counted,
                "error": error[:2_000],
                "not_before": self.now() + timedelta(seconds=delay_s),
            }
        )
        self._put_lease(attempt)

    def is_last(self, attempt: Attempt) -> bool:
        """Whether a counted failure of this attempt leaves no other."""
        return attempt.lease.faults + 1 >= self.policy.max_attempts

    def succeed(self, attempt: Attempt, output: Output) -> Result:
        """Commit the output and start what follows. Returns the result that counts, which may be another attempt's.

        Raises:
            Conflict: another job has written this manifest.
        """
        self._refuse_foreign_manifest(attempt, output)
        return self._commit(
            attempt, Result(state="succeeded", attempt=attempt.number, finished_at=self.now(), output=output)
        )

    def fail(self, attempt: Attempt, error: TextmillError) -> Result:
        """End the job as failed; nothing follows until it is replayed."""
        failure = Failure(code=error.code, message=str(error)[:10_000], retryable=error.retryable)
        return self._commit(
            attempt, Result(state="failed", attempt=attempt.number, finished_at=self.now(), failure=failure)
        )

    def end_cancelled(self, attempt: Attempt) -> Result:
        return self._commit(attempt, Result(state="cancelled", attempt=attempt.number, finished_at=self.now()))

    def settle(self, job: Job, life: int, result: Result) -> None:
        """Make a result's effects true: its manifest, the next job, and at the very end no open marker."""
        if result.output is not None:
            self.store.create(result.output.manifest_key, _manifest_bytes(result.output))
        following = job.next_job()
        if result.state == "succeeded" and following is not None:
            self._open(following)
        for item in self.store.list(scratch_prefix(job)):
            self.store.delete(item.key)
        self.store.delete(_marker_key(job.kind, job.job_id, life))

    def open_count(self, kind: str) -> int:
        """How many jobs of a kind aren't settled: they wait or run."""
        return sum(1 for _ in self.store.list(f"open/{kind}/"))

    def open_since(self, kind: str, look_at: int = 10) -> tuple[int, float]:
        """How many are open, and the age in seconds of the oldest of the first ``look_at``; ids mostly sort by time."""
        keys = [item.key for item in self.store.list(f"open/{kind}/")]
        ages = [0.0]
        for key in keys[:look_at]:
            with suppress(NotFound, ValueError):
                ages.append((self.now() - datetime.fromisoformat(self.store.get(key).decode())).total_seconds())
        return len(keys), max(ages)

    def recover(self, kind: str) -> Iterator[str]:
        """The jobs that wait and that nobody holds. Settles what a crash left half settled."""
        now = self.now()
        for item in list(self.store.list(f"open/{kind}/")):
            job_id, _, life_text = item.key.removeprefix(f"open/{kind}/").partition(".")
            try:
                life = self._read(kind, job_id)
            except NotFound:
                self._sweep_orphan(item.key, now)
                continue
            except JobFailed as exc:
                log.error("a job can't be read; those behind it go on", extra={"job_id": job_id, "error": str(exc)})
                continue
            if life.number < int(life_text):
                self._sweep_orphan(item.key, now)
            elif life.number > int(life_text):
                self.store.delete(item.key)
            elif life.result is not None:
                self.settle(life.job, life.number, life.result)
            elif not life.holder_is_live(now) and not self._too_early(life, now):
                yield job_id

    # -- the parts -------------------------------------------------------------------------------------------------

    def _read(self, kind: str, job_id: str) -> _Life:
        prefix = job_prefix(kind, job_id)
        names = [item.key.removeprefix(prefix) for item in self.store.list(prefix)]
        if "spec.json" not in names:
            raise NotFound(f"no {kind} job {job_id}")
        number = max((int(n.partition("/")[0]) for n in names if "/" in n), default=1)
        own = {n.partition("/")[2] for n in names if n.startswith(f"{number}/")}
        attempts = max((int(n[6:12]) for n in own if n.startswith("claim-")), default=0)
        lease_name = f"lease-{attempts:06d}.json"
        newest = lease_name if lease_name in own else f"claim-{attempts:06d}.json"
        here = f"{prefix}{number}/"
        spec = self.store.get(f"{prefix}spec.json")
        lease = self.store.get(here + newest) if attempts else None
        result = self.store.get(f"{here}result.json") if "result.json" in own else None
        try:
            return _Life(
                job=parse_job(spec),
                number=number,
                attempts=attempts,
                lease=Lease.model_validate_json(lease) if lease is not None else None,
                cancelled="cancel.json" in own,
                result=Result.model_validate_json(result) if result is not None else None,
            )
        except ValidationError as exc:
            raise JobFailed(f"the stored {kind} job {job_id} can't be read by this version: {exc}") from exc

    def _put_lease(self, attempt: Attempt) -> None:
        self.store.put(f"{attempt.prefix}lease-{attempt.number:06d}.json", attempt.lease.to_json())

    @staticmethod
    def _too_early(life: _Life, now: datetime) -> bool:
        return life.lease is not None and life.lease.not_before is not None and now < life.lease.not_before

    def _exhausted(self, life: _Life) -> Result:
        last = life.lease.error if life.lease and life.lease.error else "the worker vanished without a word"
        message = f"gave up after {life.faults()} attempts; the last one: {last}"
        failure = Failure(code="attempts_exhausted", message=message, retryable=False)
        return Result(state="failed", attempt=life.attempts, finished_at=self.now(), failure=failure)

    def _refuse_foreign_manifest(self, attempt: Attempt, output: Output) -> None:
        try:
            written = self.store.get(output.manifest_key)
        except NotFound:
            return
        if self.store.exists(f"{attempt.prefix}result.json") or written == _manifest_bytes(output):
            return
        raise Conflict(f"{output.manifest_key} was written by another job; give this job an output id of its own")

    def _commit(self, attempt: Attempt, result: Result) -> Result:
        return self._write_result(attempt.job, attempt.life, attempt.prefix, result)

    def _finish(self, life: _Life, result: Result) -> None:
        self._write_result(life.job, life.number, life.prefix, result)

    def _write_result(self, job: Job, life: int, prefix: str, result: Result) -> Result:
        key = f"{prefix}result.json"
        if not self.store.create(key, result.to_json()):
            result = Result.model_validate_json(self.store.get(key))
        elif result.failure is not None:
            self._bury(job, result.failure)
        self.settle(job, life, result)
        return result

    def _bury(self, job: Job, failure: Failure) -> None:
        DEAD_LETTERS.labels(job.kind, failure.code).inc()
        try:
            self.bury(job.kind, job.job_id.encode(), f"{failure.code}: {failure.message}")
        except DependencyDown as exc:
            log.warning(
                "no dead letter sent; the job's result has the reason", extra={"job_id": job.job_id, "error": str(exc)}
            )

    def _sweep_orphan(self, marker_key: str, now: datetime) -> None:
        """A marker of what was never written: the submission or replay failed, and its client was told so."""
        try:
            written_at = datetime.fromisoformat(self.store.get(marker_key).decode())
        except (NotFound, ValueError):
            return
        if now - written_at > _ORPHAN_AFTER:
            self.store.delete(marker_key)


def _manifest_bytes(output: Output) -> bytes:
    return TypeAdapter(object).dump_json(output.manifest)


def _safe(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def worker_name() -> str:
    """Tells this process from every other, also on the same host."""
    return f"{socket.gethostname()}-{os.getpid()}-{new_id('w')[-8:]}"
