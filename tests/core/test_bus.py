"""One contract for every job bus, the fake and Tansu through kafka-python; then what only a real broker can do."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaConsumer
from tests.ports import any_free

from textmill.bus import REASON_HEADER, JobBus, KafkaBus, Listener, MemoryBus, Message, dead_topic
from textmill.errors import DependencyDown
from textmill_cli.local import servers
from textmill_cli.local.process import Child
from textmill_cli.local.wait import wait_until

SESSION_S = 2.0
PATIENT_SESSION_S = 6.0
"""For what a session's end would spoil: a machine so busy that nobody is heard for two seconds ends one of two."""


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.slow)])
def bus(request: pytest.FixtureRequest) -> Iterator[JobBus]:
    made: JobBus = MemoryBus()
    if request.param == "kafka":
        made = KafkaBus(request.getfixturevalue("kafka_servers"), PATIENT_SESSION_S)
    yield made
    made.close()


@pytest.fixture
def kind() -> str:
    """A topic that no other test has seen; the group is named after it, since a member left behind stalls its group."""
    return f"k{uuid.uuid4().hex[:12]}"


def take(listener: Listener, timeout_s: float = 60) -> Message:
    """The next message, marked as done."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        message = listener.wait(0.2)
        if message is not None:
            listener.done(message)
            return message
    raise AssertionError(f"no message within {timeout_s} s")


def rest(listener: Listener, timeout_s: float = 1.0) -> list[bytes]:
    """All that still comes, until it is quiet for a while."""
    values: list[bytes] = []
    while (message := listener.wait(timeout_s)) is not None:
        listener.done(message)
        values.append(message.value)
    return values


def test_a_ring_is_heard_once(bus: JobBus, kind: str) -> None:
    bus.check()
    listener = bus.listen([kind], kind)
    for i in range(3):
        bus.ring(kind, f"job_{i}")
    heard = [take(listener) for _ in range(3)]
    assert sorted(m.value for m in heard) == [b"job_0", b"job_1", b"job_2"]
    assert {m.kind for m in heard} == {kind}
    assert listener.wait(0.1) is None
    listener.close()


def test_one_listener_hears_all_its_kinds(bus: JobBus, kind: str) -> None:
    listener = bus.listen([kind, f"{kind}x"], kind)
    bus.ring(kind, "job_1")
    bus.ring(f"{kind}x", "job_2")
    assert {(m.kind, m.value) for m in (take(listener), take(listener))} == {(kind, b"job_1"), (f"{kind}x", b"job_2")}
    listener.close()


def test_what_is_done_is_not_heard_again_and_what_is_not_is(bus: JobBus, kind: str) -> None:
    """Both rings are for one job, and so lie side by side in one partition: the commit ends exactly between them."""
    first = bus.listen([kind], kind)
    bus.ring(kind, "job_1")
    take(first)
    bus.ring(kind, "job_1")
    deadline = time.monotonic() + 60
    while first.wait(0.2) is None:
        assert time.monotonic() < deadline
    first.close()
    second = bus.listen([kind], kind)
    take(second)
    assert rest(second, 0.5) == []
    second.close()


def test_each_message_goes_to_one_member(bus: JobBus, kind: str) -> None:
    heard: list[list[bytes]] = [[], []]
    stop = threading.Event()

    def listen(values: list[bytes]) -> None:
        member = bus.listen([kind], kind)
        while not stop.is_set():
            message = member.wait(0.1)
            if message is not None:
                member.done(message)
                values.append(message.value)
        member.close()

    threads = [threading.Thread(target=listen, args=(values,), daemon=True) for values in heard]
    for thread in threads:
        thread.start()
    warm_up, deadline = 0, time.monotonic() + 120
    while not all(heard):  # the group has settled when both have heard something
        assert time.monotonic() < deadline, heard
        bus.ring(kind, f"warm_{warm_up}")
        warm_up += 1
        time.sleep(0.02)
    wanted = {f"job_{i}".encode() for i in range(20)}
    for value in wanted:
        bus.ring(kind, value.decode())
    wait_until(lambda: sum(v in wanted for values in heard for v in values) >= 20, 60, "the rest of the messages")
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert sorted(v for values in heard for v in values if v in wanted) == sorted(wanted)


def test_many_threads_may_ring(bus: JobBus, kind: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: bus.ring(kind, f"job_{i}"), range(40)))
    listener = bus.listen([kind], kind)
    assert len({take(listener).value for _ in range(40)}) == 40
    listener.close()


@pytest.mark.slow
def test_a_ring_leaves_nothing_running(kafka_servers: str, kind: str) -> None:
    """A producer that is kept spins for ever once a topic that it had used is gone."""
    bus = KafkaBus(kafka_servers, SESSION_S)
    before = set(threading.enumerate())
    bus.ring(kind, "job_1")
    assert set(threading.enumerate()) <= before


def test_the_fake_keeps_dead_letters_with_their_reason() -> None:
    bus = MemoryBus()
    bus.bury("synth", b"\xff", "no job id")
    assert bus.dead == [("synth", b"\xff", "no job id")]


@pytest.mark.slow
def test_dead_letters_lie_on_the_dead_topic_with_their_reason(kafka_servers: str, kind: str) -> None:
    bus = KafkaBus(kafka_servers, SESSION_S)
    bus.bury(kind, b"\xffnot a job", "模型 said no")
    reader = KafkaConsumer(dead_topic(kind), bootstrap_servers=kafka_servers, auto_offset_reset="earliest")
    records = [r for found in reader.poll(timeout_ms=60_000).values() for r in found]
    reader.close()
    bus.close()
    assert [(r.value, dict(r.headers)[REASON_HEADER].decode()) for r in records] == [(b"\xffnot a job", "模型 said no")]


@pytest.mark.slow
def test_a_busy_member_stays_and_lets_others_join(kafka_servers: str, kind: str) -> None:
    """It only keeps alive, for three sessions, while another joins: it loses no partition and takes no message."""
    bus = KafkaBus(kafka_servers, PATIENT_SESSION_S)
    busy = bus.listen([kind], kind)
    bus.ring(kind, "job_first")
    take(busy)
    other, other_heard = bus.listen([kind], kind), set[bytes]()
    wanted = {f"job_{i}".encode() for i in range(40)}
    for value in wanted:
        bus.ring(kind, value.decode())
    begun = time.monotonic()
    while not other_heard or time.monotonic() < begun + 3 * PATIENT_SESSION_S:
        assert time.monotonic() < begun + 120, "the other was never let in"
        busy.keep_alive()
        message = other.wait(0.2)
        if message is not None:
            other.done(message)
            other_heard.add(message.value)
    busy_heard = set[bytes]()
    deadline = time.monotonic() + 60
    while other_heard | busy_heard != wanted and time.monotonic() < deadline:
        busy_heard |= set(rest(busy, 0.5))
    assert other_heard | busy_heard == wanted
    assert busy_heard - other_heard, "the busy member lost its partitions"
    for listener in (busy, other):
        listener.close()
    bus.close()


# -- a broker that is down -----------------------------------------------------------------------------------------


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[tuple[Child, str]]:
    """A broker that the test may kill, and its address."""
    port = any_free()
    broker = servers.broker(port, tmp_path / "tansu.log")
    broker.start()
    address = f"127.0.0.1:{port}"
    wait_until(lambda: answers(lambda: KafkaBus(address).check()), 60, "Tansu")
    yield broker, address
    broker.kill()


def answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except DependencyDown:
        return False
    return True


@pytest.mark.timeout(50)
def test_a_broker_that_was_never_there_is_told_at_once() -> None:
    bus = KafkaBus(f"127.0.0.1:{any_free()}", timeout_s=60.0)
    before = set(threading.enumerate())
    for call in (bus.check, lambda: bus.ring("synth", "job_1"), lambda: bus.listen(["synth"], "g")):
        with pytest.raises(DependencyDown, match="TEXTMILL_BUS_SERVERS"):
            call()
    assert set(threading.enumerate()) <= before
    bus.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_frozen_broker_blocks_nobody_for_long(own_broker: tuple[Child, str]) -> None:
    """Its port takes connections, but nothing answers: every call gives up, and leaves no thread behind."""
    broker, address = own_broker
    bus = KafkaBus(address, SESSION_S, timeout_s=3.0)
    listener = bus.listen(["synth"], "g")
    bus.ring("synth", "job_1")
    deadline = time.monotonic() + 60
    while (message := listener.wait(0.2)) is None:
        assert time.monotonic() < deadline, "no message"
    before = set(threading.enumerate())
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    calls = (
        bus.check,
        lambda: bus.ring("synth", "job_2"),
        lambda: bus.listen(["synth"], "g"),
        lambda: listener.done(message),
    )
    for call in calls:
        with pytest.raises(DependencyDown):
            call()
    listener.keep_alive()
    assert listener.wait(0.1) is None
    assert set(threading.enumerate()) <= before
    listener.close()
    bus.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bus_and_listener_come_back_by_themselves_after_a_broker_was_killed(own_broker: tuple[Child, str]) -> None:
    broker, address = own_broker
    bus = KafkaBus(address, SESSION_S)
    listener = bus.listen(["synth"], "g")
    bus.ring("synth", "job_1")
    take(listener)
    broker.kill()
    for call in (lambda: rest(listener, 0.1), lambda: bus.ring("synth", "job_2"), bus.check):
        wait_until(lambda call=call: not answers(call), 60, "word of the broker's death")  # type: ignore[misc]
    broker.start()  # with nothing in its memory: no topic, no group
    wait_until(lambda: answers(lambda: bus.ring("synth", "job_3")), 60, "the first ring after the restart")

    def rings_and_is_heard() -> bool:
        try:
            bus.ring("synth", "job_4")
            return b"job_4" in rest(listener, 0.5)
        except DependencyDown:
            return False

    wait_until(rings_and_is_heard, 60, "the old listener's first message after the restart")
    consumer = listener._consumer
    there = consumer.partitions_for_topic("textmill.synth.jobs")
    assert {p.partition for p in consumer.assignment()} <= there, "it spins over partitions that are gone"
    listener.close()
    bus.close()
