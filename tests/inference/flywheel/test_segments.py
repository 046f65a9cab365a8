"""What is read back: filtered, without what was deleted, and gone after its time."""

from datetime import timedelta

import pytest
from traffic_made import NOON, MoodyStore, all_logged, logged, store_with

from textmill.contracts.base import utc_now
from textmill.contracts.traffic import NewFeedback
from textmill.errors import NotFound
from textmill_inference.flywheel.feedback import feedback_by_request, feedback_of, keep_feedback
from textmill_inference.flywheel.segments import delete, find, new_segment_key, purge, sweep


def test_filters():
    store = store_with(*(logged(n, model="a" if n % 2 else "b", group=f"g{n % 3}") for n in range(12)), segments=3)
    assert {e.request_id for e in all_logged(store, model="a", group="g0")} == {"req_3", "req_9"}
    since, until = NOON + timedelta(seconds=3), NOON + timedelta(seconds=6)
    assert {e.request_id for e in all_logged(store, since=since, until=until)} == {"req_3", "req_4", "req_5"}
    assert len(all_logged(store, limit=5)) == 5


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        all_logged(store_with(), since="2026-03-01T12:00:00")


def test_a_deleted_request_is_gone_from_the_bytes_and_takes_its_feedback_along():
    store = store_with(*(logged(n) for n in range(4)), segments=2)
    keep_feedback(store, NewFeedback(request_id="req_1", rating="up"))
    gone = delete(store, "req_1")
    assert (gone.exchanges, gone.feedback) == (1, 1)
    assert [e.request_id for e in all_logged(store)] == ["req_0", "req_2", "req_3"]
    assert b'"req_1"' not in b"".join(store.get(i.key) for i in store.list("traffic/log/"))
    assert feedback_of(store, "req_1") == []
    assert find(store, "req_1") == []


def test_a_request_id_that_another_one_begins_with_stays():
    store = store_with(logged(1), logged(10))
    delete(store, "req_1")
    assert [e.request_id for e in all_logged(store)] == ["req_10"]


def test_what_comes_after_its_deletion_is_never_shown_and_is_purged():
    store = store_with(logged(0))
    keep_feedback(store, NewFeedback(request_id="req_5", rating="up"))
    delete(store, "req_5")
    late = new_segment_key()
    store.create(late, logged(5).to_json() + b"\n" + logged(6).to_json() + b"\n")
    assert [e.request_id for e in all_logged(store)] == ["req_0", "req_6"]
    assert b"req_5" in store.get(late)
    assert purge(store, utc_now()) == 1
    assert b"req_5" not in store.get(late)
    assert b"req_6" in store.get(late)


def test_deleting_what_was_never_logged():
    with pytest.raises(NotFound, match="never logged"):
        delete(store_with(logged(0)), "req_7")


def test_retention():
    store = store_with(logged(0), logged(1))
    keep_feedback(store, NewFeedback(request_id="req_0", rating="up"))
    delete(store, "req_1")
    now = utc_now()
    assert sweep(store, 30, now + timedelta(days=30)) == 0
    assert sweep(store, 30, now + timedelta(days=31)) == 3
    assert [i.key for i in store.list("traffic/")] == ["traffic/policy.json"]


def test_the_same_feedback_twice_is_one_and_a_change_of_mind_another():
    store = MoodyStore()
    first, created = keep_feedback(store, NewFeedback(request_id="r/1", rating="up"))
    assert created
    assert keep_feedback(store, NewFeedback(request_id="r/1", rating="up")) == (first, False)
    keep_feedback(store, NewFeedback(request_id="r/1", rating="down"))
    assert [f.rating for f in feedback_by_request(store)["r/1"]] == ["up", "down"]


def test_feedback_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        NewFeedback(request_id="r")
