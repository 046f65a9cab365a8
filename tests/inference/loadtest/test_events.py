"""Events of a load test: written in chunks, read by another process, followed as server-sent events from any one."""

import asyncio

import pytest

from textmill.contracts.jobs import LoadtestJob, Output
from textmill.contracts.loadoptions import LoadtestEvent
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.feeds import BEGINNING
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_inference.loadtest import events as module
from textmill_inference.loadtest.events import EventLog, event_feeds, parse_event_id
from textmill_inference.loadtest.job import name_owner


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    return Jobs(MemoryStore())


@pytest.fixture
def job(jobs):
    submitted = jobs.submit(LoadtestJob(model="m"))
    name_owner(jobs.store, submitted)
    return submitted


def tell(log, *numbers):
    for number in numbers:
        log.tell(LoadtestEvent(at_s=number, note=f"event {number}"))


def finish(jobs, job):
    attempt = jobs.claim("loadtest", job.job_id, "w")
    jobs.succeed(attempt, Output(manifest_key="x", manifest={}))


def collect(jobs, job, position=BEGINNING, before=None):
    """All frames until the end; ``before`` runs once the first of them came."""

    async def follow():
        feeds = event_feeds(jobs.store, jobs, every_s=0.01)
        feed = await feeds.open(job.loadtest_id)
        found = b""
        async for data in feeds.follow(feed, position):
            found += data
            if before is not None and found.count(b"id: ") == 1:
                before()
        return found.decode()

    return asyncio.run(asyncio.wait_for(follow(), 60))


def ids(text):
    return [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]


def test_what_was_told_is_followed_from_the_beginning_to_the_end(jobs, job):
    tell(EventLog(jobs.store, job.loadtest_id), *range(10))
    finish(jobs, job)
    text = collect(jobs, job)
    assert ids(text) == [f"1.{n}" for n in range(10)]
    assert 'event: note\ndata: {"at_s":3.0,"note":"event 3"}' in text
    assert text.endswith('event: end\ndata: {"state": "succeeded"}\n\n')


def test_what_comes_while_one_follows_comes_once(jobs, job):
    log = EventLog(jobs.store, job.loadtest_id)
    tell(log, 0)

    def go_on():
        tell(log, *range(1, 9))
        finish(jobs, job)

    assert ids(collect(jobs, job, before=go_on)) == [f"1.{n}" for n in range(9)]


@pytest.mark.parametrize(
    ("last", "missed"), [("1.6", ["1.7", "1.8"]), ("1.8", []), ("0.99", [f"1.{n}" for n in range(9)])]
)
def test_a_client_that_comes_back_gets_what_it_missed(jobs, job, last, missed):
    tell(EventLog(jobs.store, job.loadtest_id), *range(9))
    finish(jobs, job)
    assert ids(collect(jobs, job, parse_event_id(last))) == missed


def test_a_later_attempt_has_its_own_part_and_leaves_the_first_ones_events(jobs, job):
    tell(EventLog(jobs.store, job.loadtest_id), 0, 1)
    tell(EventLog(jobs.store, job.loadtest_id), 0, 1, 2)
    finish(jobs, job)
    assert ids(collect(jobs, job)) == ["1.0", "1.1", "2.0", "2.1", "2.2"]
    assert ids(collect(jobs, job, (1, 1))) == ["2.0", "2.1", "2.2"]


def test_a_store_that_is_away_for_a_while_loses_no_event(jobs, job):
    log = EventLog(jobs.store, job.loadtest_id)
    put = jobs.store.put

    def away(key, data):
        raise DependencyDown("away")

    jobs.store.put = away
    tell(log, *range(6))
    jobs.store.put = put
    tell(log, 6)
    finish(jobs, job)
    assert ids(collect(jobs, job)) == [f"1.{n}" for n in range(7)]


def test_nobodys_test_and_nobodys_event(jobs):
    with pytest.raises(NotFound, match="GET /v1/loadtests"):
        asyncio.run(event_feeds(jobs.store, jobs).open("lt_" + "0" * 32))
    for text in ("x", "1", "1.2.3", "-1.0"):
        with pytest.raises(BadRequest, match=r"look like 1\.40"):
            parse_event_id(text)
