"""The one loop of all workers: hear the bell, claim, work, and commit, or retry later, or dead-letter.

The bell's offset is committed as soon as the claim is decided, since from then on the store knows all. Between
messages the loop looks for jobs that wait unheard and takes them itself. While the handler works in its thread, this
loop renews the lease and stays in the consumer group. Knows no kind of job.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from textmill import tracing
from textmill.bus import JobBus, Listener, Message
from textmill.contracts.jobs import JobKind, Output, Progress, Result
from textmill.errors import Cancelled, DependencyDown, Draining, JobFailed, LeaseLost, Stopped, TextmillError, Transient
from textmill.jobs import Attempt, Jobs, parse_job_id, worker_name
from textmill.store import ObjectStore
from textmill.telemetry import (
    DEAD_LETTERS,
    JOB_ATTEMPTS,
    JOB_SECONDS,
    JOBS_FINISHED,
    JOBS_OPEN,
    JOBS_RUNNING,
    begin_at_zero,
)

log = logging.getLogger(__name__)


@dataclass
class JobContext:
    """What a handler may use. ``scratch`` is a key prefix of its own, swept when the job is settled."""

    store: ObjectStore
    attempt: int
    scratch: str
    stopping: threading.Event = field(default_factory=threading.Event)
    stop_error: Stopped | None = None
    current: Progress = field(default_factory=Progress)

    def progress(
        self, stage: str, done: float = 0, total: float | None = None, unit: str = "", **figures: float
    ) -> None:
        """Cheap: shown with the next heartbeat. A new stage is an event of the attempt's span."""
        if stage != self.current.stage:
            tracing.event(stage)
        self.current = Progress(stage=stage, done=done, total=total, unit=unit, figures=figures)

    def raise_if_stopped(self) -> None:
        """Raises ``Cancelled``, ``LeaseLost`` or ``Draining``. Call at least once a second."""
        if self.stop_error is not None:
            raise self.stop_error

    def stop(self, error: Stopped) -> None:
        if self.stop_error is None:
            self.stop_error = error
            self.stopping.set()


Handler = Callable[[Any, JobContext], Output]


@dataclass(frozen=True)
class Pace:
    """How often the loop looks up, in seconds."""

    heartbeat_s: float = 2.0
    recover_every_s: float = 5.0
    grace_s: float = 20.0


class Worker:
    """Takes one job at a time of the kinds it has handlers for, until ``drain``."""

    def __init__(
        self, jobs: Jobs, bus: JobBus, handlers: Mapping[JobKind, Handler], group: str, pace: Pace | None = None
    ) -> None:
        self._jobs = jobs
        self._bus = bus
        self._handlers = handlers
        self._group = group
        self._pace = pace or Pace()
        self._name = worker_name()
        self._listener: Listener | None = None
        self._draining = threading.Event()
        self._recover_at = 0.0
        self._pause_s = 0.0
        begin_at_zero(handlers)

    def run(self) -> None:
        """Block until drained. No error of a store, broker or handler ends it."""
        log.info("worker started", extra={"worker": self._name, "kinds": list(self._handlers)})
        while not self._draining.is_set():
            try:
                self._turn()
            except DependencyDown as exc:
                log.warning("paused: a dependency is down", extra={"error": str(exc)})
                self._rest(1.0)
            except Exception:
                log.exception("worker loop failed; it goes on")
                self._rest(1.0)
        self._drop_listener()
        log.info("worker drained", extra={"worker": self._name})

    def drain(self) -> None:
        """Finish or give back what is in hand, then let ``run`` return. Safe to call from any thread."""
        self._draining.set()

    def _turn(self) -> None:
        if time.monotonic() >= self._recover_at:
            self._recover_at = time.monotonic() + self._pace.recover_every_s
            if self._take_waiting():
                self._recover_at = 0.0  # where one job waits there may be more
        message = None if self._draining.is_set() else self._hear()
        if message is not None:
            self._answer(message)

    def _take_waiting(self) -> bool:
        """Work off one job whose bell was lost, or rings at a busy worker: a partition has one listener.

        The kinds come in random order, so that a backlog of one starves no other.
        """
        for kind in random.sample(list(self._handlers), len(self._handlers)):
            JOBS_OPEN.labels(kind).set(self._jobs.open_count(kind))
            for job_id in self._jobs.recover(kind):
                if self._draining.is_set():
                    return False
                attempt = self._jobs.claim(kind, job_id, self._name)
                if attempt is not None:
                    self._work(attempt)
                    return True
        return False

    def _rest(self, seconds: float) -> None:
        """Wait, unless there is a drain, but stay in the consumer group."""
        until = time.monotonic() + seconds
        while not self._draining.is_set() and (left := until - time.monotonic()) > 0:
            self._with_listener(lambda listener: listener.keep_alive())
            self._draining.wait(min(left, self._pace.heartbeat_s))

    # -- hearing ---------------------------------------------------------------------------------------------------

    def _hear(self) -> Message | None:
        try:
            if self._listener is None:
                self._listener = self._bus.listen(list(self._handlers), self._group)
            return self._listener.wait(min(0.5, self._pace.recover_every_s))
        except Exception as exc:
            # The client library has faults of its own; whatever it raised, a new listener is the cure.
            log.warning("no broker; jobs are found in the store meanwhile", extra={"error": str(exc)})
            self._drop_listener()
            self._draining.wait(1.0)
            return None

    def _drop_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.close()
            except Exception as exc:
                log.info("listener didn't close cleanly", extra={"error": str(exc)})

    def _answer(self, message: Message) -> None:
        attempt = None
        try:
            attempt = self._jobs.claim(message.kind, parse_job_id(message.value), self._name)
        except JobFailed as exc:
            self._bury(message.kind, message.value, exc.code, str(exc))
        self._with_listener(lambda listener: listener.done(message))
        if attempt is not None:
            self._work(attempt, message.traceparent)

    def _with_listener(self, action: Callable[[Listener], None]) -> None:
        if self._listener is None:
            return
        try:
            action(self._listener)
        except Exception as exc:
            log.warning("lost the broker", extra={"error": str(exc)})
            self._drop_listener()

    # -- working ---------------------------------------------------------------------------------------------------

    def _work(self, attempt: Attempt, rung_by: str = "") -> None:
        job = attempt.job
        with tracing.span(
            f"{job.kind} job",
            "consumer",
            rung_by or job.traceparent,
            {"textmill.job.id": job.job_id, "textmill.job.attempt": attempt.number},
        ):
            self._attempt(attempt)

    def _attempt(self, attempt: Attempt) -> None:
        kind, fields = attempt.job.kind, {"job_id": attempt.job.job_id, "attempt": attempt.number}
        log.info("attempt started", extra=fields)
        began = time.monotonic()
        context = JobContext(self._jobs.store, attempt.number, attempt.scratch)
        outcome = _Outcome()
        thread = threading.Thread(
            # With this thread's context, so that what the handler does is within the attempt's span.
            target=copy_context().run,
            args=(self._handle, attempt, context, outcome),
            name=attempt.job.job_id,
            daemon=True,
        )
        with JOBS_RUNNING.labels(kind).track_inprogress():
            thread.start()
            self._supervise(thread, attempt, context)
        if thread.is_alive():
            outcome = _Outcome(error=context.stop_error)
        seconds = time.monotonic() - began
        JOB_SECONDS.labels(kind).observe(seconds)
        self._conclude(attempt, outcome, fields)

    def _handle(self, attempt: Attempt, context: JobContext, outcome: "_Outcome") -> None:
        try:
            outcome.output = self._handlers[attempt.job.kind](attempt.job, context)
        except TextmillError as exc:
            outcome.error = exc
        except Exception as exc:
            log.exception("handler failed", extra={"job_id": attempt.job.job_id})
            outcome.error = Transient(f"{type(exc).__name__}: {exc}")

    def _supervise(self, thread: threading.Thread, attempt: Attempt, context: JobContext) -> None:
        """Until the handler ends: lease, group membership, cancel, drain. A handler that won't stop is left behind."""
        stop_by: float | None = None
        next_beat = time.monotonic() + self._pace.heartbeat_s / 4
        while thread.is_alive():
            thread.join(0.05)
            if self._draining.is_set():
                context.stop(Draining("this worker is shutting down"))
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._pace.heartbeat_s
                self._beat(attempt, context)
            if context.stop_error is not None:
                stop_by = stop_by or time.monotonic() + self._pace.grace_s
                if time.monotonic() > stop_by:
                    return

    def _beat(self, attempt: Attempt, context: JobContext) -> None:
        self._with_listener(lambda listener: listener.keep_alive())
        try:
            self._jobs.renew(attempt, context.current)
            if attempt.cancelled:
                context.stop(Cancelled(f"{attempt.job.job_id} was cancelled"))
        except LeaseLost as exc:
            context.stop(exc)
        except Exception as exc:
            # Leaving here would leave the handler at work with nobody to stop it.
            log.warning("heartbeat missed", extra={"job_id": attempt.job.job_id, "error": str(exc)})

    def _conclude(self, attempt: Attempt, outcome: "_Outcome", fields: dict[str, Any]) -> None:
        """Write down how the attempt ended, trying until the store takes it or the worker has to go."""
        pause_s = 0.5
        while True:
            try:
                word = self._write_down(attempt, outcome)
                break
            except DependencyDown as exc:
                if self._draining.is_set():
                    word = "unrecorded"
                    break
                log.warning("the store won't take the outcome yet", extra={**fields, "error": str(exc)})
                self._rest(pause_s)
                pause_s = min(10.0, pause_s * 2)
        JOB_ATTEMPTS.labels(attempt.job.kind, word).inc()
        tracing.note({"textmill.job.outcome": word})
        if outcome.error is not None:
            tracing.fail(outcome.error.code)
        log.info("attempt ended", extra={**fields, "outcome": word, "error": str(outcome.error or "")[:500]})
        if word == "dependency_down":
            self._rest(self._pause_s)
        else:
            self._pause_s = 0.0

    def _write_down(self, attempt: Attempt, outcome: "_Outcome") -> str:
        error = outcome.error
        if outcome.output is not None:
            try:
                return self._finished(attempt, self._jobs.succeed(attempt, outcome.output))
            except TextmillError as exc:
                if isinstance(exc, DependencyDown):
                    raise
                error = exc
        if isinstance(error, LeaseLost):
            return "lease_lost"
        if isinstance(error, Cancelled):
            return self._finished(attempt, self._jobs.end_cancelled(attempt))
        if isinstance(error, (Draining, DependencyDown)):
            return self._give_back(attempt, error)
        if isinstance(error, Transient) and not self._jobs.is_last(attempt):
            delay_s = self._jobs.policy.delay_s(attempt.lease.faults, error.retry_after_s)
            self._jobs.release(attempt, str(error), counted=True, delay_s=delay_s)
            return "retry"
        final = error or JobFailed("the handler returned nothing")
        return self._finished(attempt, self._jobs.fail(attempt, final))

    def _give_back(self, attempt: Attempt, error: TextmillError) -> str:
        if isinstance(error, Draining):
            self._jobs.release(attempt, str(error), counted=False, delay_s=0.0)
            return "drained"
        pause_s = min(30.0, max(0.5, self._pause_s * 2))
        self._jobs.release(attempt, str(error), counted=False, delay_s=max(error.retry_after_s or 0.0, pause_s))
        self._pause_s = pause_s
        return "dependency_down"

    @staticmethod
    def _finished(attempt: Attempt, result: Result) -> str:
        """The result that counts may be another attempt's, if this one was taken over."""
        if result.attempt != attempt.number:
            return "lost_commit"
        JOBS_FINISHED.labels(attempt.job.kind, result.state).inc()
        return result.state

    def _bury(self, kind: str, value: bytes, code: str, reason: str) -> None:
        DEAD_LETTERS.labels(kind, code).inc()
        try:
            self._bus.bury(kind, value, reason)
        except DependencyDown as exc:
            log.warning(
                "dead letter not on the topic; the job's result has it", extra={"kind": kind, "error": str(exc)}
            )


@dataclass
class _Outcome:
    output: Output | None = None
    error: TextmillError | None = None
