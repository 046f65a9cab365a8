"""The recorder: nothing blocks, nothing grows without bound, nothing is lost without being counted."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from prometheus_client import REGISTRY
from traffic_made import CALLER, EVERYONE, MoodyStore, all_logged, exchanged

from textmill.contracts.traffic import TrafficPolicy
from textmill.store import MemoryStore
from textmill_inference.flywheel.log import LogBounds, RequestLog
from textmill_inference.flywheel.segments import write_policy
from textmill_inference.gateway.ports import Recorder

FAST = LogBounds(flush_s=0.01, policy_every_s=0.01)


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"textmill_traffic_{name}_total", labels) or 0.0


def dropped(reason):
    return metric("exchanges_dropped", reason=reason)


@pytest.fixture
def store():
    made = MoodyStore()
    write_policy(made, EVERYONE)
    return made


@pytest.fixture
def running():
    logs = []

    def start(store, bounds=FAST):
        log: Recorder = RequestLog(store, bounds)
        logs.append(log)
        log.start()
        return log

    yield start
    for log in logs:
        log.stop()


def test_it_is_off_until_somebody_turns_it_on(running, waits):
    store = MemoryStore()
    log = running(store)
    assert not log.wants(CALLER, "small")
    write_policy(store, EVERYONE)
    waits(lambda: log.wants(CALLER, "small"), "the policy to be followed")
    write_policy(store, TrafficPolicy())
    waits(lambda: not log.wants(CALLER, "small"), "the policy to be followed back")


def test_every_exchange_is_written_once_in_whole_segments(store, running, waits):
    log = running(store, LogBounds(flush_s=0.01, segment_bytes=5_000))
    before = metric("exchanges_logged")
    for number in range(100):
        log.record(exchanged(number))
    waits(lambda: log.waiting_bytes == 0, "all to be written")
    assert sorted(e.request_id for e in all_logged(store)) == sorted(f"req_{n}" for n in range(100))
    assert metric("exchanges_logged") - before == 100
    assert len(list(store.list("traffic/log/"))) > 1


def test_with_the_store_down_memory_is_bounded_and_every_drop_counted(store, running, waits):
    bounds = LogBounds(flush_s=0.01, segment_bytes=20_000, most_bytes=100_000)
    log = running(store, bounds)
    store.down = True
    before = dropped("memory_full")
    size = len(exchanged(0).request) + len(exchanged(0).answer) + 1_024
    most = 0
    for number in range(1_000):
        log.record(exchanged(number))
        most = max(most, log.waiting_bytes)
    waits(lambda: store.refused > 2, "some tries")
    assert 100_000 - 2 * size < most <= 100_000
    lost = dropped("memory_full") - before
    store.down = False
    waits(lambda: log.waiting_bytes == 0, "the rest to be written")
    kept = all_logged(store)
    assert len(kept) + lost == 1_000
    assert lost > 0
    # The oldest are kept, in order, and none twice.
    assert [e.request_id for e in kept] == [f"req_{n}" for n in range(len(kept))]


def test_a_write_whose_answer_was_lost_is_not_done_twice(store, running, waits):
    class Forgetful(MoodyStore):
        def create(self, key, data):
            done = super().create(key, data)
            if done and key.startswith("traffic/log/"):
                raise TimeoutError("the answer never came")
            return done

    forgetful = Forgetful()
    write_policy(forgetful, EVERYONE)
    log = running(forgetful)
    log.record(exchanged(1))
    waits(lambda: log.waiting_bytes == 0, "the second try")
    assert [e.request_id for e in all_logged(forgetful)] == ["req_1"]


def test_recording_never_waits_for_the_store(store, running):
    blocked, release = threading.Event(), threading.Event()

    class Slow(MoodyStore):
        def create(self, key, data):
            blocked.set()
            release.wait(60)
            return super().create(key, data)

    slow = Slow()
    write_policy(slow, EVERYONE)
    log = running(slow)
    log.record(exchanged(0))
    assert blocked.wait(60)
    for number in range(1, 50):
        log.record(exchanged(number))
    assert not release.is_set()
    release.set()
    log.stop()
    assert len(all_logged(slow)) == 50


def test_what_cant_be_written_before_the_end_is_counted(store, running):
    log = running(store, LogBounds(flush_s=0.01, stop_s=0.3))
    store.down = True
    before = dropped("shutdown")
    for number in range(7):
        log.record(exchanged(number))
    log.stop()
    assert dropped("shutdown") - before == 7


@pytest.mark.parametrize(
    ("changed", "reason"), [({"answer": b"<html>"}, "answer"), ({"request": {"store": False}}, "store_false")]
)
def test_what_isnt_kept_is_counted_by_reason(store, running, waits, changed, reason):
    log = running(store)
    before = dropped(reason)
    log.record(exchanged(0, **changed))
    log.record(exchanged(1))
    waits(lambda: len(all_logged(store)) == 1, "the other one")
    assert dropped(reason) - before == 1


_RECORDS_FOREVER = """
import sys, time
sys.path[:0] = [{tests!r}]
from traffic_made import exchanged
from textmill.store import S3Store
from textmill_inference.flywheel.log import LogBounds, RequestLog
url, access, secret, bucket = sys.argv[1:]
log = RequestLog(S3Store(url, access, secret, bucket), LogBounds(flush_s=0.2))
log.start()
for number in range(1_000_000):
    log.record(exchanged(number))
    print(number, time.time(), flush=True)
    time.sleep(0.005)
"""


def test_kill_9_loses_the_last_two_seconds_at_most_and_no_segment_is_torn(s3_store, s3_url):
    """At a fifth of the usual pause between writes, and while they come: a machine that stands still holds them up."""
    from textmill_cli.local import servers

    write_policy(s3_store, EVERYONE)
    code = _RECORDS_FOREVER.format(tests=os.path.dirname(__file__))
    arguments = [s3_url, servers.ACCESS_KEY, servers.SECRET_KEY, s3_store._bucket]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, env=env, text=True)
    assert process.stdout is not None
    recorded, looks = [], []
    try:
        for line in process.stdout:
            recorded.append(line)
            if len(recorded) % 50 == 0 and _seconds(recorded) > 3:
                looks.append((time.time(), len(list(s3_store.list("traffic/log/")))))
                if _segments_come(looks):
                    break
            assert _seconds(recorded) < 60, f"no two segments came in a second and a half: {looks}"
    finally:
        killed_at = time.time()
        process.send_signal(signal.SIGKILL)
        recorded += process.stdout.readlines()
        process.wait()
        process.stdout.close()
    due = [int(n) for n, at in (line.split() for line in recorded) if float(at) < killed_at - 2.0]
    kept = [int(e.request_id.removeprefix("req_")) for e in all_logged(s3_store)]
    assert kept == list(range(len(kept)))
    assert len(kept) >= len(due) > 0


def _seconds(recorded):
    return float(recorded[-1].split()[1]) - float(recorded[0].split()[1])


def _segments_come(looks):
    """Two since a look a moment ago. The second was begun after it, and so has all that was recorded before it."""
    now, there = time.time(), looks[-1][1]
    return any(there - before >= 2 for at, before in looks if now - at < 1.5)
