"""The job bus port, its Kafka adapter and an in-memory fake.

Kafka is only the doorbell: a message is a job id, never text, and losing it loses nothing, since the store knows
which jobs are open. So offsets are committed as soon as a job was claimed, and the consumer lives on while the work
goes on, paused. Knows nothing of what a job is.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata

from textmill.errors import DependencyDown

REASON_HEADER = "textmill-reason"


def jobs_topic(kind: str) -> str:
    return f"textmill.{kind}.jobs"


def dead_topic(kind: str) -> str:
    return f"textmill.{kind}.dead"


@dataclass(frozen=True)
class Message:
    """A ring of the bell. ``token`` is the adapter's own, for ``done``."""

    kind: str
    value: bytes
    token: Any = None


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
    """The fake: a queue for each kind. ``dead`` keeps what was buried, with the reason."""

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

    def wait(self, timeout_s: float) -> Message | None:
        deadline = time.monotonic() + timeout_s
        while True:
            for kind in self._kinds:
                try:
                    return Message(kind, self._bus.queue(kind).get_nowait())
                except queue.Empty:
                    continue
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.005)

    def keep_alive(self) -> None:
        pass

    def done(self, message: Message) -> None:
        pass

    def close(self) -> None:
        pass


class KafkaBus:
    """Kafka through kafka-python. The producer is made on first use and again after a failure."""

    def __init__(
        self, servers: str, session_timeout_s: float = 6.0, partitions: int = 8, send_timeout_s: float = 5.0
    ) -> None:
        self._servers = servers
        self._session_timeout_s = session_timeout_s
        self._partitions = partitions
        self._send_timeout_s = send_timeout_s
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    def ring(self, kind: str, job_id: str) -> None:
        self._send(jobs_topic(kind), job_id.encode(), key=job_id.encode(), headers=[])

    def bury(self, kind: str, value: bytes, reason: str) -> None:
        self._send(dead_topic(kind), value, key=None, headers=[(REASON_HEADER, reason.encode())])

    def listen(self, kinds: Sequence[str], group: str) -> "KafkaListener":
        with _KafkaErrors(self._servers):
            self._ensure_topics([t for kind in kinds for t in (jobs_topic(kind), dead_topic(kind))])
            consumer = KafkaConsumer(
                bootstrap_servers=self._servers,
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_poll_records=1,
                isolation_level="read_committed",
                session_timeout_ms=int(self._session_timeout_s * 1000),
                heartbeat_interval_ms=int(self._session_timeout_s * 250),
                request_timeout_ms=int(self._session_timeout_s * 1000) + 5_000,
            )
            consumer.subscribe([jobs_topic(kind) for kind in kinds])
        return KafkaListener(consumer, self._servers)

    def check(self) -> None:
        with _KafkaErrors(self._servers):
            admin = self._admin()
            try:
                admin.list_topics()
            finally:
                admin.close()

    def close(self) -> None:
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)
                self._producer = None

    def _send(self, topic: str, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        with self._lock, _KafkaErrors(self._servers):
            try:
                if self._producer is None:
                    self._producer = self._make_producer()
                self._producer.send(topic, value, key=key, headers=headers).get(timeout=self._send_timeout_s)
            except Exception:
                if self._producer is not None:
                    self._producer.close(timeout=0)
                    self._producer = None
                raise

    def _make_producer(self) -> KafkaProducer:
        # A ring that fails is rung again from the store: better to fail soon than to block a submission.
        return KafkaProducer(
            bootstrap_servers=self._servers,
            acks="all",
            retries=1,
            max_block_ms=int(self._send_timeout_s * 1000),
            request_timeout_ms=int(self._send_timeout_s * 1000),
            delivery_timeout_ms=int(self._send_timeout_s * 1000) + 1_000,
        )

    def _ensure_topics(self, topics: list[str]) -> None:
        admin = self._admin()
        try:
            missing = set(topics) - set(admin.list_topics())
            for topic in sorted(missing):
                try:
                    admin.create_topics([NewTopic(topic, num_partitions=self._partitions, replication_factor=-1)])
                except TopicAlreadyExistsError:
                    continue
        finally:
            admin.close()

    def _admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(bootstrap_servers=self._servers, request_timeout_ms=int(self._send_timeout_s * 1000))


class KafkaListener:
    def __init__(self, consumer: KafkaConsumer, servers: str) -> None:
        self._consumer = consumer
        self._servers = servers

    def wait(self, timeout_s: float) -> Message | None:
        with _KafkaErrors(self._servers):
            paused = self._consumer.paused()
            if paused:
                self._consumer.resume(*paused)
            for partition, records in self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=1).items():
                for record in records:
                    kind = partition.topic.removeprefix("textmill.").removesuffix(".jobs")
                    return Message(kind, record.value or b"", token=(partition, record.offset))
        return None

    def keep_alive(self) -> None:
        with _KafkaErrors(self._servers):
            self._consumer.pause(*self._consumer.assignment())
            self._consumer.poll(timeout_ms=0)

    def done(self, message: Message) -> None:
        partition: TopicPartition
        partition, offset = message.token
        with _KafkaErrors(self._servers):
            self._consumer.commit({partition: OffsetAndMetadata(offset + 1, "", -1)})

    def close(self) -> None:
        self._consumer.close(autocommit=False)


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
