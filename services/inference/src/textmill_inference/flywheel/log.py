"""The recorder that the gateway hands exchanges to: a bounded queue, and a thread that writes segments to the store.

The event loop only appends; reading, redaction and writing happen on the thread. A segment is one create-only write,
so a reader sees all of it or nothing, and a kill loses what came within the last ``flush_s`` and the time of a write.
While the store is down exchanges wait, up to ``most_bytes``; what comes then is counted and dropped.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

from textmill.contracts.base import utc_now
from textmill.contracts.traffic import TrafficPolicy
from textmill.errors import TextmillError
from textmill.store import ObjectStore
from textmill_inference.flywheel import metrics
from textmill_inference.flywheel.reading import Unreadable, read_exchange
from textmill_inference.flywheel.sampling import Sampler
from textmill_inference.flywheel.segments import new_segment_key, purge, read_policy, sweep
from textmill_inference.gateway.keys import Caller
from textmill_inference.gateway.ports import Exchanged

log = logging.getLogger(__name__)
_OVERHEAD_BYTES = 1_024
"""What an exchange takes besides its request and answer."""


@dataclass(frozen=True)
class LogBounds:
    """``most_bytes`` bounds what waits in memory, ``segment_bytes`` one write, ``answer_bytes`` one answer."""

    flush_s: float = 1.0
    segment_bytes: int = 4 << 20
    most_bytes: int = 64 << 20
    answer_bytes: int = 1 << 20
    policy_every_s: float = 5.0
    sweep_every_s: float = 600.0
    stop_s: float = 5.0


class RequestLog:
    """A ``gateway.ports.Recorder``. ``start`` it once; ``stop`` writes what waits."""

    def __init__(self, store: ObjectStore, bounds: LogBounds | None = None) -> None:
        self._store = store
        self._bounds = bounds or LogBounds()
        self._sampler = Sampler(TrafficPolicy())
        self._policy: TrafficPolicy | None = None
        self._waiting: deque[Exchanged] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._segment: _Segment | None = None
        self._looked_at = self._swept_at = float("-inf")

    # -- the gateway's side ----------------------------------------------------------------------------------------

    @property
    def answer_bytes(self) -> int:
        return self._bounds.answer_bytes

    def wants(self, caller: Caller, model: str) -> bool:
        """Whether the policy in force logs this request. It may be a few seconds behind the stored one."""
        return self._sampler.wants(model, caller.group)

    def record(self, exchanged: Exchanged) -> None:
        size = _size(exchanged)
        with self._lock:
            fits = self._waiting_bytes + size <= self._bounds.most_bytes
            if fits:
                self._waiting.append(exchanged)
                self._waiting_bytes += size
        if not fits:
            metrics.DROPPED.labels("memory_full").inc()
        elif self._waiting_bytes >= self._bounds.segment_bytes:
            self._wake.set()

    @property
    def waiting_bytes(self) -> int:
        """Of what isn't in the store yet."""
        return self._waiting_bytes

    # -- the thread's side -----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._look_at_policy()
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, for ``stop_s`` at most; what is left then is counted and lost."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(self._bounds.stop_s)
        if lost := len(self._waiting) + (self._segment.exchanges if self._segment else 0):
            metrics.DROPPED.labels("shutdown").inc(lost)
            log.warning("the store took no more before the end", extra={"exchanges_lost": lost})

    def _run(self) -> None:
        deadline = float("inf")
        while time.monotonic() < deadline:
            stopping = self._stopping.is_set()
            if stopping:
                deadline = min(deadline, time.monotonic() + self._bounds.stop_s)
            written = self._flush()
            metrics.WAITING_BYTES.set(self._waiting_bytes)
            if written and stopping:
                return
            self._wake.clear()
            if not written or not self._enough():
                self._wake.wait(min(self._bounds.flush_s, 0.2) if stopping else self._bounds.flush_s)
            self._look_at_policy()
            self._clean_up()

    def _flush(self) -> bool:
        """Write segment after segment. False if the store won't have one; it is kept for the next turn."""
        while True:
            if self._segment is None:
                self._segment = self._next_segment()
                if self._segment is None:
                    return True
            if not self._write(self._segment):
                return False
            self._give_back(self._segment.held_bytes)
            metrics.LOGGED.inc(self._segment.exchanges)
            self._segment = None

    def _next_segment(self) -> "_Segment | None":
        """What waits, up to a segment's size, read and redacted. None if nothing of it is to be kept."""
        batch, held = self._take()
        lines = [line for exchanged in batch if (line := _line(exchanged)) is not None]
        if not lines:
            self._give_back(held)
            return self._next_segment() if batch else None
        return _Segment(new_segment_key(), b"".join(lines), len(lines), held)

    def _take(self) -> tuple[list[Exchanged], int]:
        batch, held = [], 0
        with self._lock:
            while self._waiting and held < self._bounds.segment_bytes:
                batch.append(self._waiting.popleft())
                held += _size(batch[-1])
        return batch, held

    def _write(self, segment: "_Segment") -> bool:
        try:
            # Taken by an earlier try whose answer was lost, if by anyone: the key is ours alone.
            self._store.create(segment.key, segment.data)
        except Exception as exc:
            metrics.SEGMENTS_FAILED.inc()
            log.warning("a segment waits for the store", extra={"error": str(exc), "exchanges": segment.exchanges})
            return False
        return True

    def _give_back(self, held: int) -> None:
        with self._lock:
            self._waiting_bytes -= held

    def _enough(self) -> bool:
        return self._waiting_bytes >= self._bounds.segment_bytes

    def _look_at_policy(self) -> None:
        if time.monotonic() < self._looked_at + self._bounds.policy_every_s:
            return
        self._looked_at = time.monotonic()
        try:
            policy = read_policy(self._store)
        except (TextmillError, ValueError) as exc:
            log.warning("the logging policy can't be read; the last one stays", extra={"error": str(exc)})
            return
        if policy != self._policy:
            self._policy, self._sampler = policy, Sampler(policy)

    def _clean_up(self) -> None:
        if self._policy is None or time.monotonic() < self._swept_at + self._bounds.sweep_every_s:
            return
        self._swept_at = time.monotonic()
        try:
            metrics.SEGMENTS_SWEPT.inc(sweep(self._store, self._policy.retention_days, utc_now()))
            purge(self._store, utc_now())
        except Exception as exc:
            log.warning("old traffic wasn't swept; the next turn tries again", extra={"error": str(exc)})


@dataclass(frozen=True)
class _Segment:
    """``held_bytes`` is what its exchanges took while they waited, and still count for until it is written."""

    key: str
    data: bytes
    exchanges: int
    held_bytes: int


def _line(exchanged: Exchanged) -> bytes | None:
    try:
        exchange = read_exchange(exchanged)
    except Unreadable as exc:
        metrics.DROPPED.labels(str(exc)).inc()
        return None
    except Exception:
        # No private text into the log: the traceback's message could have some.
        log.error("an exchange couldn't be read", extra={"request_id": exchanged.request_id})
        metrics.DROPPED.labels("error").inc()
        return None
    for kind, count in exchange.redacted.items():
        metrics.REDACTED.labels(kind).inc(count)
    return exchange.to_json() + b"\n"


def _size(exchanged: Exchanged) -> int:
    return len(exchanged.request) + len(exchanged.answer) + _OVERHEAD_BYTES
