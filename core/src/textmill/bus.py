"""The job bus port, its Kafka adapter and an in-memory fake.

Kafka is only the doorbell: a message is a job id, never text, and losing it loses nothing, since the store knows
which jobs are open. So offsets are committed as soon as a job was claimed, and the consumer lives on while the work
goes on, paused. Knows nothing of what a job is.
"""

import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import CommitFailedError, KafkaError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from textmill import tracing
from textmill.errors import DependencyDown

REASON_HEADER = "textmill-reason"
TRACE_HEADER = "traceparent"
_Client = TypeVar("_Client")


def jobs_topic(kind: str) -> str:
    return f"textmill.{kind}.jobs"


def dead_topic(kind: str) -> str:
    return f"textmill.{kind}.dead"


@dataclass(frozen=True)
class Message:
    """A ring of the bell. ``token`` is the adapter's own, for ``done``; ``traceparent`` is of the span that rang."""

    kind: str
    value: bytes
    token: Any = None
    traceparent: str = ""


class Listener(Protocol):
    """One member of a kind's consumer group. Not thread-safe."""

    def wait(self, timeout_s: float) -> Message | None:
        """The next message, if one comes in time. Raises ``DependencyDown``."""
        ...

    def keep_alive(self) -> None:
        """Stay in the group without taking a message. Call every few seconds while working."""
        ...

    def done(self, message: Message) -> None:
        """Never deliver this one again. A loss of the commit is harmless: the claim is in the store."""
        ...

    def close(self) -> None: ...


class JobBus(Protocol):
    def ring(self, kind: str, job_id: str) -> None:
        """Say that a job waits. Raises ``DependencyDown`` if the broker doesn't confirm in time."""
        ...

    def bury(self, kind: str, value: bytes, reason: str) -> None:
        """Put a message on the dead-letter topic. Raises ``DependencyDown``."""
        ...

    def listen(self, kinds: Sequence[str], group: str) -> Listener:
        """Join the group. Each message goes to one member. Raises ``DependencyDown``."""
        ...

    def check(self) -> None:
        """Raises ``DependencyDown`` if the broker can't be reached."""
        ...

    def close(self) -> None: ...


@dataclass
class MemoryBus:
    """The fake: a queue for each kind, one group, no headers. ``dead`` keeps what was buried, with the reason."""

    dead: list[tuple[str, bytes, str]] = field(default_factory=list)
    _queues: dict[str, "queue.Queue[bytes]"] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ring(self, kind: str, job_id: str) -> None:
        self.queue(kind).put(job_id.encode())

    def queue(self, kind: str) -> "queue.Queue[bytes]":
        with self._lock:
            return self._queues.setdefault(kind, queue.Queue())

    def bury(self, kind: str, value: bytes, reason: str) -> None:
        self.dead.append((kind, value, reason))

    def listen(self, kinds: Sequence[str], group: str) -> "MemoryListener":
        return MemoryListener(self, kinds)

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryListener:
    def __init__(self, bus: MemoryBus, kinds: Sequence[str]) -> None:
        self._bus = bus
        self._kinds = kinds
        self._taken: list[Message] = []

    def wait(self, timeout_s: float) -> Message | None:
        deadline = time.monotonic() + timeout_s
        while True:
            for kind in self._kinds:
                try:
                    message = Message(kind, self._bus.queue(kind).get_nowait())
                except queue.Empty:
                    continue
                self._taken.append(message)
                return message
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.005)

    def keep_alive(self) -> None:
        pass

    def done(self, message: Message) -> None:
        self._taken.remove(message)

    def close(self) -> None:
        for message in self._taken:
            self._bus.queue(message.kind).put(message.value)
        self._taken.clear()


class KafkaBus:
    """Kafka through kafka-python. Nothing connects before first use; nothing blocks much longer than ``timeout_s``."""

    def __init__(
        self, servers: str, session_timeout_s: float = 6.0, partitions: int = 8, timeout_s: float = 5.0
    ) -> None:
        self._servers = servers
        self._session_timeout_s = session_timeout_s
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._known_topics: set[str] = set()
        self._down_until = 0.0
        self._lock = threading.Lock()

    def ring(self, kind: str, job_id: str) -> None:
        current = tracing.traceparent()
        headers = [] if current is None else [(TRACE_HEADER, current.encode())]
        self._send(jobs_topic(kind), job_id.encode(), key=job_id.encode(), headers=headers)

    def bury(self, kind: str, value: bytes, reason: str) -> None:
        self._send(dead_topic(kind), value, key=None, headers=[(REASON_HEADER, reason.encode())])

    def listen(self, kinds: Sequence[str], group: str) -> "KafkaListener":
        with _KafkaErrors(self._servers):
            return KafkaListener(lambda: self._join(kinds, group), self._servers, self._timeout_s)

    def check(self) -> None:
        with _KafkaErrors(self._servers):
            admin = self._admin()
            try:
                admin.list_topics()
            finally:
                admin.close()

    def close(self) -> None:
        """Nothing stays open between calls; listeners are closed by those who have them."""

    def _join(self, kinds: Sequence[str], group: str) -> KafkaConsumer:
        self._ensure_topics([t for kind in kinds for t in (jobs_topic(kind), dead_topic(kind))])
        consumer = self._connect(
            KafkaConsumer,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._session_timeout_s * 1000),
            heartbeat_interval_ms=int(self._session_timeout_s * 250),
            request_timeout_ms=int((self._session_timeout_s + self._timeout_s) * 1000),
        )
        consumer.subscribe([jobs_topic(kind) for kind in kinds])
        return consumer

    def _send(self, topic: str, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        """With a producer of its own, at some 12 ms: rings are few.

        One that is kept would, once a topic it had used is gone (a broker restarted empty), ask for that topic's leader
        again and again without a pause, at half a core, even with nothing to send (kafka-python 3.0.12).
        """
        with _KafkaErrors(self._servers):
            self._expect_topic(topic)
            try:
                producer = self._make_producer()
                try:
                    producer.send(topic, value, key=key, headers=headers).get(timeout=self._timeout_s)
                finally:
                    producer.close(timeout=2)
            except Exception:
                self._found_down()
                raise

    def _expect_topic(self, topic: str) -> None:
        """While the broker is down the first caller finds out; the others, and the next for a second, fail at once."""
        with self._lock:
            if time.monotonic() < self._down_until:
                raise DependencyDown(f"Kafka at {self._servers} was down a moment ago")
            if topic in self._known_topics:
                return
            try:
                self._ensure_topics([topic])
            except Exception:
                self._found_down()
                raise
            self._known_topics.add(topic)

    def _found_down(self) -> None:
        self._known_topics.clear()
        self._down_until = time.monotonic() + 1.0

    def _make_producer(self) -> KafkaProducer:
        # The store knows a job whose ring failed: better to fail soon than to block a submission.
        timeout_ms = int(self._timeout_s * 1000)
        return self._connect(
            KafkaProducer,
            acks="all",
            enable_idempotence=False,
            retries=1,
            max_block_ms=timeout_ms,
            request_timeout_ms=timeout_ms,
            delivery_timeout_ms=timeout_ms,
        )

    def _ensure_topics(self, topics: list[str]) -> None:
        """Made on purpose: a topic that Kafka makes by itself has one partition, and so one worker at a time."""
        admin = self._admin()
        try:
            for topic in sorted(set(topics) - set(admin.list_topics())):
                try:
                    admin.create_topics({topic: {"num_partitions": self._partitions}})
                except TopicAlreadyExistsError:
                    continue
        finally:
            admin.close()

    def _admin(self) -> KafkaAdminClient:
        return self._connect(KafkaAdminClient, request_timeout_ms=int(self._timeout_s * 1000))

    def _connect(self, factory: Callable[..., _Client], **options: object) -> _Client:
        """Build a client; one that can't be built is closed, for kafka-python would leave its thread behind."""
        knock(self._servers)
        inner: list[KafkaNetClient] = []

        def open_inner(**config: object) -> KafkaNetClient:
            inner.append(KafkaNetClient(**config))
            return inner[-1]

        try:
            return factory(
                bootstrap_servers=self._servers,
                bootstrap_timeout_ms=int(self._timeout_s * 1000),
                reconnect_backoff_max_ms=1_000,
                kafka_client=open_inner,
                **options,
            )
        except BaseException:
            for client in inner:
                client.close()
            raise


class KafkaListener:
    def __init__(self, join: Callable[[], KafkaConsumer], servers: str, timeout_s: float) -> None:
        self._join = join
        self._consumer = join()
        self._servers = servers
        self._timeout_ms = int(timeout_s * 1000)
        self._held: deque[Message] = deque()
        self._knock_at = 0.0

    def wait(self, timeout_s: float) -> Message | None:
        with _KafkaErrors(self._servers):
            if not self._held:
                self._consumer.resume(*self._consumer.paused())
                self._poll(timeout_s)
            if self._held:
                return self._held.popleft()
            self._knock()
        return None

    def keep_alive(self) -> None:
        with _KafkaErrors(self._servers):
            self._consumer.pause(*self._consumer.assignment())
            # A rebalance in here hands us partitions that aren't paused; what comes of them is kept for ``wait``.
            self._poll(0)

    def done(self, message: Message) -> None:
        partition: TopicPartition
        partition, offset = message.token
        with _KafkaErrors(self._servers):
            try:
                self._consumer.commit({partition: OffsetAndMetadata(offset + 1, "", -1)}, timeout_ms=self._timeout_ms)
            except CommitFailedError:
                return  # the partition moved to another member, which hears this message once more: harmless

    def close(self) -> None:
        with _KafkaErrors(self._servers):
            self._consumer.close(autocommit=False, timeout_ms=2_000)

    def _poll(self, timeout_s: float) -> None:
        for partition, records in self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=1).items():
            kind = partition.topic.removeprefix("textmill.").removesuffix(".jobs")
            self._held.extend(
                Message(kind, r.value or b"", (partition, r.offset), _traceparent(r.headers)) for r in records
            )

    def _knock(self) -> None:
        """``poll`` is silent about a broker that is gone, however long it stays away.

        For partitions that were lost with a broker's memory it asks again and again, without a pause, at half a core.
        """
        if time.monotonic() < self._knock_at:
            return
        self._knock_at = time.monotonic() + 2.0
        knock(self._servers)
        known = {topic: self._consumer.partitions_for_topic(topic) or set() for topic in self._consumer.subscription()}
        if any(partition not in known[topic] for topic, partition in self._consumer.assignment()):
            self.close()
            self._consumer = self._join()


def _traceparent(headers: Sequence[tuple[str, bytes | None]] | None) -> str:
    return next(((value or b"").decode("latin-1") for name, value in headers or () if name == TRACE_HEADER), "")


def knock(servers: str, timeout_s: float = 2.0) -> None:
    """Raises ``DependencyDown`` if none of ``host:port,...`` takes a connection; at once if they are dead."""
    reasons: list[str] = []
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
            return
        except (OSError, ValueError) as exc:
            reasons.append(f"{server}: {exc}")
    raise DependencyDown(f"no Kafka broker takes a connection ({'; '.join(reasons)}); check TEXTMILL_BUS_SERVERS")


class _KafkaErrors:
    """Turns what kafka-python raises into ``DependencyDown``. It lets some OS and assertion errors through, too."""

    def __init__(self, servers: str) -> None:
        self._servers = servers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (KafkaError, OSError, AssertionError, TimeoutError)):
            raise DependencyDown(f"Kafka at {self._servers}: {type(error).__name__}: {error}") from error
