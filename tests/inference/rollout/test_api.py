"""The control routes of deployments over HTTP, with real jobs in a store in memory and engines without a process."""

import json
import urllib.error
import urllib.request

import pytest
from tests.inference.rollout.published import ONE, TWO, FakeEngine, FakeEngines, publish

from textmill.errors import JobFailed
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.rollout.api import deployment_router
from textmill_inference.rollout.deployments import Deployments


class Service:
    def __init__(self, serve, tmp_path):
        self.store = MemoryStore()
        for model_id in (ONE, TWO):
            publish(self.store, model_id)
        self.jobs = Jobs(self.store, ring=lambda kind, job_id: None, bury=lambda kind, job_id, reason: None)
        attached = {"theirs": [FakeEngine("theirs", "theirs", None)]}
        engines = FakeEngines()
        self.deployments = Deployments(self.store, tmp_path / "cache", engines, "base", attached, settle_s=0)
        app = create_app("inference", jobs=self.jobs, kinds=("deploy",), checks={})
        app.include_router(deployment_router(self.deployments, self.jobs))
        self.url = serve(app)

    def call(self, method, path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def deploy(self, **body):
        """Submit, and do the job as a worker would."""
        status, view = self.call("POST", "/v1/deployments", {"name": "tuned", **body})
        assert status == 202, view
        self.work(view["job"]["job_id"])
        return view["job"]

    def work(self, job_id):
        job = self.jobs.view("deploy", job_id).job
        attempt = self.jobs.claim("deploy", job_id, "worker")
        self.jobs.succeed(attempt, self.deployments.deploy(job, JobContext(self.store, 1, "scratch/")))


@pytest.fixture
def service(serve, tmp_path):
    made = Service(serve, tmp_path)
    yield made
    made.deployments.stop()


def test_a_canary_from_its_deployment_to_its_promotion(service):
    service.deploy(model_id=ONE)
    job = service.deploy(model_id=TWO, canary_percent=5)
    _, view = service.call("GET", "/v1/deployments/tuned")
    assert (view["ready"], view["deployment"]["canary"]["percent"]) == (True, 5)
    assert [(v["role"], v["model_id"], v["ready"]) for v in view["versions"]] == [
        ("stable", ONE, True),
        ("canary", TWO, True),
    ]
    status, view = service.call("PATCH", "/v1/deployments/tuned", {"canary_percent": 50})
    assert (status, view["deployment"]["canary"]["percent"]) == (200, 50)
    which = {"deployment_id": job["deployment_id"]}
    for _ in range(2):
        status, view = service.call("POST", "/v1/deployments/tuned/promote", which)
        assert (status, view["deployment"]["model_id"], view["deployment"]["canary"]) == (200, TWO, None)
    assert view["deployment"]["last_trial"]["outcome"] == "promoted"
    assert service.call("POST", "/v1/deployments/tuned/promote")[0] == 409


def test_abort_ends_the_trial_that_is_meant(service):
    service.deploy(model_id=ONE)
    service.deploy(model_id=TWO, shadow_percent=10)
    service.deploy(model_id=TWO, canary_percent=10)
    _, view = service.call("POST", "/v1/deployments/tuned/abort?role=shadow")
    assert (view["deployment"]["shadow"], view["deployment"]["canary"]["model_id"]) == (None, TWO)
    for _ in range(2):
        status, view = service.call("POST", "/v1/deployments/tuned/abort")
        assert (status, view["deployment"]["canary"], view["deployment"]["model_id"]) == (200, None, ONE)
    assert service.call("POST", "/v1/deployments/tuned/abort?role=other")[0] == 422


def test_a_rollback_asked_twice_is_one_job(service):
    service.deploy(model_id=ONE)
    second = service.deploy(model_id=TWO)
    status, first = service.call("POST", "/v1/deployments/tuned/rollback")
    assert status == 202, first
    assert first["job"]["model_id"] == ONE
    assert service.call("POST", "/v1/deployments/tuned/rollback")[1]["job"]["job_id"] == first["job"]["job_id"]
    service.work(first["job"]["job_id"])
    status, view = service.call("POST", "/v1/deployments/tuned/rollback", {"deployment_id": second["deployment_id"]})
    assert (status, view["deployment"]["model_id"]) == (200, ONE)
    status, problem = service.call("POST", "/v1/deployments/tuned/rollback")
    assert (status, problem["type"]) == (404, "urn:textmill:not_found")


def test_a_rollback_that_failed_is_tried_anew(service):
    service.deploy(model_id=ONE)
    service.deploy(model_id=TWO)
    _, first = service.call("POST", "/v1/deployments/tuned/rollback")
    job_id = first["job"]["job_id"]
    attempt = service.jobs.claim("deploy", job_id, "worker")
    service.jobs.fail(attempt, JobFailed("no memory"))
    _, again = service.call("POST", "/v1/deployments/tuned/rollback")
    assert (again["job"]["job_id"], again["result"], again["life"]) == (job_id, None, 2)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/deployments", {"name": "base", "model_id": ONE}, 400),
        ("POST", "/v1/deployments", {"name": "theirs", "model_id": ONE}, 400),
        ("POST", "/v1/deployments", {"name": "new", "model_id": ONE, "canary_percent": 101}, 422),
        ("POST", "/v1/deployments", {"name": "new", "model_id": ONE, "canary_percent": 1, "shadow_percent": 1}, 422),
        ("GET", "/v1/deployments/nobody", None, 404),
        ("POST", "/v1/deployments/nobody/rollback", None, 404),
        ("POST", "/v1/deployments/nobody/promote", None, 404),
        ("PATCH", "/v1/deployments/tuned", {}, 422),
        ("PATCH", "/v1/deployments/tuned", {"shadow_percent": 5}, 409),
        ("DELETE", "/v1/deployments/theirs", None, 400),
    ],
)
def test_what_makes_no_sense_is_refused(service, method, path, body, status):
    service.deploy(model_id=ONE)
    assert service.call(method, path, body)[0] == status


def test_a_dropped_name_is_no_longer_listed(service):
    service.deploy(model_id=ONE)
    assert [one["name"] for one in service.call("GET", "/v1/deployments")[1]["items"]] == ["theirs", "tuned"]
    assert service.call("DELETE", "/v1/deployments/tuned")[0] == 204
    assert [one["name"] for one in service.call("GET", "/v1/deployments")[1]["items"]] == ["theirs"]
