"""The load tests' routes over real HTTP, with a worker beside them and a made-up server behind the generator."""

import json
import threading
import urllib.error
import urllib.request

import pytest
from made_up import MadeUpServer

from textmill.bus import MemoryBus
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import Pace, Worker
from textmill_inference.loadtest.api import loadtest_router
from textmill_inference.loadtest.job import Loadtester
from textmill_inference.loadtest.keyrefs import KeySource

KEY = "sk-the-very-secret-key"
SLO = {"limits": [{"measure": "ttft", "percent": 99, "ms": 400}]}


def call(url, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read().decode()
            return response.status, json.loads(text) if "json" in response.headers["Content-Type"] else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Service:
    def __init__(self, serve):
        self.server = MadeUpServer(20.5, spread=0.01)
        self.hold = threading.Event()
        self.hold.set()
        self.bus = MemoryBus()
        self.jobs = Jobs(MemoryStore(), ring=self.bus.ring, bury=self.bus.bury)
        environ = {"TEXTMILL_INFERENCE_LOADTEST_KEY": KEY}
        tester = Loadtester("http://127.0.0.1:9", "", KeySource(None, environ), generator=lambda key, traces: self)
        app = create_app("inference", jobs=self.jobs, kinds=("loadtest",), checks={})
        app.include_router(loadtest_router(self.jobs, self.jobs.store, tester))
        self.url = serve(app)
        pace = Pace(heartbeat_s=0.05, recover_every_s=0.2, grace_s=2)
        self.worker = Worker(self.jobs, self.bus, {"loadtest": tester}, "g", pace)
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()

    def run(self, stage, on_news, stopping):
        """As a generator: waits for ``hold``, if a test wants a stage to last."""
        while not self.hold.wait(0.02):
            stopping()
        return self.server.run(stage, on_news, stopping)

    def submit(self, **options):
        status, view = call(f"{self.url}/v1/loadtests", {"model": "m", "target_url": "http://127.0.0.1:9", **options})
        assert status == 202, view
        return f"{self.url}/v1/loadtests/{view['job']['loadtest_id']}", view["job"]

    def state(self, path):
        return call(path)[1]["state"]


@pytest.fixture
def service(serve):
    made = Service(serve)
    yield made
    made.hold.set()
    made.worker.drain()
    made.thread.join(60)


def test_a_test_from_submission_to_its_page(service, waits):
    path, job = service.submit(concurrencies=[1, 8, 32], slo=SLO)
    waits(lambda: service.state(path) == "succeeded", "the test to end")
    _, view = call(path)
    assert view["report"]["verdict"] == view["verdict"]
    assert [level["load"] for level in view["report"]["levels"]] == [1, 8, 32]
    assert (view["job_id"], view["loadtest_id"]) == (job["job_id"], job["loadtest_id"])
    assert call(f"{service.url}/v1/loadtests")[1]["items"] == [{**view, "report": None}]
    status, page = call(f"{path}/report.html")
    assert status == 200
    assert view["verdict"]["headline"] in page
    assert call(f"{path}/report.csv")[1].count("\n") == 4
    assert call(f"{path}/stages/2")[1]["stage"]["load"]["concurrency"] == 8
    assert call(f"{path}/nothing")[0] == 404
    assert call(f"{path}/stages/9")[0] == 404


def test_a_test_is_there_before_it_has_begun_and_while_it_runs(service, waits):
    service.hold.clear()
    path, _ = service.submit(concurrencies=[1])
    status, view = call(path)
    assert (status, view["report"]) == (200, None)
    waits(lambda: service.state(path) == "running", "the test to begin")
    assert call(f"{path}/report.html")[0] == 404
    service.hold.set()
    waits(lambda: service.state(path) == "succeeded", "the test to end")


def test_events_are_sent_live_and_again_from_any_of_them(service, waits):
    path, _ = service.submit(concurrencies=[1, 2])
    _, text = call(f"{path}/events")
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds == ["stage", "second", "second", "second", "level"] * 2 + ["verdict", "end"]
    last = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")][-3]
    _, rest = call(f"{path}/events", headers={"Last-Event-ID": last})
    assert rest == text[text.index(f"id: {last}\n") :].partition("\n\n")[2]
    assert call(f"{path}/events", headers={"Last-Event-ID": "x"})[0] == 400


def test_cancel(service, waits):
    service.hold.clear()
    path, _ = service.submit(concurrencies=[1])
    waits(lambda: service.state(path) == "running", "the test to begin")
    assert call(f"{path}/cancel", {})[0] == 200
    waits(lambda: service.state(path) == "cancelled", "the test to end")
    assert call(path)[1]["report"] is None


def test_two_tests_are_compared(service, waits):
    paths = [service.submit(concurrencies=loads)[0] for loads in ([4, 8], [8, 16], [2])]
    for path in paths:
        waits(lambda path=path: service.state(path) == "succeeded", "the test to end")
    ids = [path.rpartition("/")[2] for path in paths]
    _, found = call(f"{paths[0]}/compare/{ids[1]}")
    assert [comparison["load"] for comparison in found["comparisons"]] == [8]
    status, problem = call(f"{paths[0]}/compare/{ids[2]}")
    assert (status, "no load in common" in problem["detail"]) == (409, True)


def test_what_cannot_be_run_is_refused_before_it_is_stored(service):
    for body, status in (
        ({"target_url": "ftp://x"}, 400), ({"target_url": "http://u:p@x"}, 422), ({"concurrencies": []}, 422),
        ({"key_from": {"env": "HOME"}}, 400), ({"key_from": {"secret": "x"}}, 400), ({"api_key": KEY}, 422),
        ({"versus": {"model": "b"}, "capacity": {}}, 422), ({"metrics_url": "file:///etc/passwd"}, 400),
    ):  # fmt: skip
        found, problem = call(f"{service.url}/v1/loadtests", {"model": "m", **body})
        assert (found, KEY in json.dumps(problem)) == (status, False), body
    assert call(f"{service.url}/v1/loadtests")[1]["items"] == []
    assert call(f"{service.url}/v1/loadtests/lt_{'0' * 32}")[0] == 404


def test_a_key_by_reference_is_in_nothing_that_the_service_keeps_or_says(service, waits):
    service.server = MadeUpServer(20, failing=2, detail=f"wrong key {KEY}")
    path, _ = service.submit(concurrencies=[1], key_from={"env": "TEXTMILL_INFERENCE_LOADTEST_KEY"})
    waits(lambda: service.state(path) == "succeeded", "the test to end")
    said = [call(path), call(f"{path}/events"), call(f"{path}/report.html"), call(f"{path}/stages/1")]
    stored = [service.jobs.store.get(info.key).decode() for info in service.jobs.store.list("")]
    assert "wrong key [key]" in json.dumps(said)
    assert KEY not in json.dumps([said, stored])
