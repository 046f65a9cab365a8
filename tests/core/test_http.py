"""The HTTP edge that all services share, on the in-memory store."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from textmill.contracts.base import new_id
from textmill.contracts.jobs import CorpusJob, Output, Progress
from textmill.errors import BadRequest, DependencyDown, JobFailed, NotFound, TextmillError, Transient
from textmill.http import create_app, submission_router
from textmill.jobs import Jobs
from textmill.store import MemoryStore, ObjectInfo

BODY = {"document_ids": [new_id("doc")]}


class DownStore(MemoryStore):
    """Goes down at the call that ``down_at`` counts down to; the call itself is done if its ``answer_lost``."""

    def __init__(self) -> None:
        super().__init__()
        self.down_at: int | None = None
        self.answer_lost = False

    def _call(self, then: Any) -> Any:
        if self.down_at is None:
            return then()
        self.down_at -= 1
        if self.down_at >= 0:
            return then()
        if self.answer_lost:
            then()
        raise DependencyDown("the object store at s3.test can't be reached")

    def create(self, key: str, data: bytes) -> bool:
        won: bool = self._call(lambda: super(DownStore, self).create(key, data))
        return won

    def put(self, key: str, data: bytes) -> None:
        self._call(lambda: super(DownStore, self).put(key, data))

    def get(self, key: str) -> bytes:
        data: bytes = self._call(lambda: super(DownStore, self).get(key))
        return data

    def exists(self, key: str) -> bool:
        found: bool = self._call(lambda: super(DownStore, self).exists(key))
        return found

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        items: Iterator[ObjectInfo] = self._call(lambda: super(DownStore, self).list(prefix, after))
        return items


@pytest.fixture
def store() -> DownStore:
    return DownStore()


@pytest.fixture
def jobs(store: DownStore) -> Jobs:
    return Jobs(store)


@pytest.fixture
def client(jobs: Jobs) -> TestClient:
    return make_client(jobs)


def make_client(jobs: Jobs, token: str = "", **checks: Any) -> TestClient:
    app = create_app("test", jobs=jobs, kinds=("corpus", "crawl"), checks=checks, token=SecretStr(token))
    app.include_router(submission_router("/v1/corpora", CorpusJob, jobs, check=_no_empty_corpus))
    raised: dict[str, Exception] = {
        "not_found": NotFound("no object at 'x'"),
        "transient": Transient("slow down", retry_after_s=7.4),
        "job_failed": JobFailed("no"),
        "unexpected": RuntimeError("secret: 易经 at /etc/passwd"),
    }

    @app.get("/raise/{name}")
    def raise_it(name: str) -> None:
        raise raised[name]

    return TestClient(app, raise_server_exceptions=False)


def _no_empty_corpus(job: CorpusJob) -> None:
    if not job.document_ids and not job.crawl_ids:
        raise BadRequest("a corpus needs document_ids or crawl_ids")


def is_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["type"], body["status"]) == (f"urn:textmill:{code}", status)
    assert body["title"]
    return body


# -- health, metrics, ids --------------------------------------------------------------------------------------------


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "checks": {}}


def test_readiness_names_what_fails(jobs: Jobs) -> None:
    def down() -> None:
        raise DependencyDown("no broker at 127.0.0.1:9")

    def mute() -> None:
        raise ValueError

    answer = make_client(jobs, bus=down, disk=mute, store=lambda: None).get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "not ready",
        "checks": {"bus": "no broker at 127.0.0.1:9", "disk": "ValueError", "store": "ok"},
    }


def test_metrics_count_requests_by_route_and_hold_no_ids(client: TestClient, jobs: Jobs) -> None:
    job = jobs.submit(CorpusJob(document_ids=(new_id("doc"),)))
    client.get(f"/v1/jobs/{job.job_id}")
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'textmill_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"}' in text
    assert 'route="other",status="404"' in text
    assert job.job_id not in text
    assert "nowhere" not in text


def test_a_request_id_is_given_back_or_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert all(i.startswith("req_") for i in made)


@pytest.mark.parametrize("given", [b"x" * 129, b"\xff\xfe", b"two words", b""])
def test_a_request_id_that_could_do_harm_is_replaced(client: TestClient, given: bytes) -> None:
    answer = client.get("/healthz", headers=[(b"x-request-id", given)])
    assert answer.status_code == 200
    assert answer.headers["x-request-id"].startswith("req_")


def test_openapi_builds_and_knows_the_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/corpora"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/CorpusJob")
    assert client.get("/docs").status_code == 200


# -- errors ----------------------------------------------------------------------------------------------------------


def test_own_errors_are_problems_with_their_code(client: TestClient) -> None:
    assert is_problem(client.get("/raise/not_found"), 404, "not_found")["detail"] == "no object at 'x'"
    is_problem(client.get("/raise/job_failed"), 500, "job_failed")
    answer = client.get("/raise/transient")
    is_problem(answer, 503, "transient")
    assert answer.headers["retry-after"] == "7"


def test_every_own_error_has_a_code_and_a_status() -> None:
    def below(error: type[TextmillError]) -> list[type[TextmillError]]:
        return [error, *(e for sub in error.__subclasses__() for e in below(sub))]

    for error in (e for e in below(TextmillError) if e.__module__ == "textmill.errors"):
        assert error("x").code.islower()
        assert 400 <= error.status <= 599


def test_what_framework_refuses_is_a_problem_too(client: TestClient) -> None:
    is_problem(client.get("/v1/nothing"), 404, "not_found")
    answer = client.delete("/v1/corpora")
    is_problem(answer, 405, "http_error")
    assert answer.headers["allow"] == "POST"


def test_an_unexpected_error_tells_nothing_but_its_request_id(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/raise/unexpected", headers={"X-Request-ID": "abc-2"})
    is_problem(answer, 500, "internal_error")
    assert answer.headers["x-request-id"] == "abc-2"
    for secret in ("secret", "易经", "RuntimeError", "Traceback", "File "):
        assert secret not in answer.text
    logged = [r for r in caplog.records if r.getMessage() == "request failed"]
    assert [(r.request_id, r.exc_info is not None) for r in logged] == [("abc-2", True)]  # type: ignore[attr-defined]


def test_without_the_token_only_health_metrics_and_docs_answer(jobs: Jobs) -> None:
    client = make_client(jobs, token="s3cret")
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for header in (None, "Bearer wrong", "s3cret", "Basic s3cret", "Bearer s3cret2"):
        answer = client.get("/v1/jobs", headers={} if header is None else {"Authorization": header})
        problem = is_problem(answer, 401, "unauthorized")
        assert "s3cret" not in problem["detail"]
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer s3cret"}).status_code == 200


# -- submission ------------------------------------------------------------------------------------------------------


def test_a_submission_is_accepted_with_its_address(client: TestClient) -> None:
    answer = client.post("/v1/corpora", json=BODY)
    assert answer.status_code == 202
    view = answer.json()
    assert view["state"] == "queued"
    assert answer.headers["location"] == f"/v1/jobs/{view['job']['job_id']}"
    assert client.get(answer.headers["location"]).json()["job"] == view["job"]


def test_ids_may_come_from_the_client(client: TestClient) -> None:
    ids = {"job_id": new_id("job"), "corpus_id": new_id("cor")}
    assert (
        client.post("/v1/corpora", json=BODY | ids).json()["job"] | ids
        == client.get(f"/v1/jobs/{ids['job_id']}").json()["job"]
    )
    is_problem(client.post("/v1/corpora", json={"document_ids": [new_id("doc")]} | ids), 409, "conflict")


def test_the_same_key_and_body_give_the_same_job(client: TestClient) -> None:
    answers = [client.post("/v1/corpora", json=BODY, headers={"Idempotency-Key": "k1"}) for _ in range(3)]
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["job"]["job_id"] for a in answers}) == 1
    assert len(client.get("/v1/jobs").json()["items"]) == 1
    other = client.post("/v1/corpora", json=BODY, headers={"Idempotency-Key": "k2"})
    assert other.json()["job"]["job_id"] != answers[0].json()["job"]["job_id"]


def test_the_same_key_with_another_body_is_refused(client: TestClient) -> None:
    client.post("/v1/corpora", json=BODY, headers={"Idempotency-Key": "k1"})
    answer = client.post("/v1/corpora", json={"crawl_ids": [new_id("crl")]}, headers={"Idempotency-Key": "k1"})
    is_problem(answer, 422, "idempotency_clash")
    assert len(client.get("/v1/jobs").json()["items"]) == 1


def test_racing_submissions_with_one_key_give_one_job(client: TestClient) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(client.post("/v1/corpora", json=BODY, headers={"Idempotency-Key": "k"}))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["job"]["job_id"] for a in answers}) == 1


def test_a_misspelt_field_is_named(client: TestClient) -> None:
    answer = client.post("/v1/corpora", json=BODY | {"splitt": {}})
    problem = is_problem(answer, 422, "invalid_request")
    assert "splitt" in problem["detail"]
    assert problem["errors"][0]["where"] == "body.splitt"
    assert client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"kind": "synth"}', b'{"job_id": "../../etc"}', b"\xff"])
def test_what_is_no_such_job_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/corpora", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(answer, answer.status_code, answer.json()["type"].removeprefix("urn:textmill:"))
    assert answer.status_code in (400, 422)
    assert client.get("/v1/jobs").json()["items"] == []


def test_a_service_may_refuse_before_anything_is_stored(client: TestClient, store: DownStore) -> None:
    is_problem(client.post("/v1/corpora", json={}), 400, "bad_request")
    assert list(store.list("")) == []


@pytest.mark.parametrize("answer_lost", [False, True], ids=["refused", "answer-lost"])
@pytest.mark.parametrize("key", ["k1", None])
def test_nothing_half_written_counts_when_the_store_goes_down(key: str | None, answer_lost: bool) -> None:
    """Down at each call of a submission in turn, before it is done or after it was: 503, and a retry mends it all."""
    headers = {} if key is None else {"Idempotency-Key": key}
    step, seen = 0, 0
    while True:
        store = DownStore()
        jobs = Jobs(store)
        client = make_client(jobs)
        store.down_at, store.answer_lost = step, answer_lost
        answer = client.post("/v1/corpora", json=BODY, headers=headers)
        store.down_at = None
        if answer.status_code == 202:
            break
        is_problem(answer, 503, "dependency_down")
        assert int(answer.headers["retry-after"]) >= 1
        listed = [v["job"]["job_id"] for v in client.get("/v1/jobs").json()["items"]]
        assert set(listed) == set(jobs.recover("corpus")), "a job is listed that no worker would ever find"
        if key is not None:
            again = client.post("/v1/corpora", json=BODY, headers=headers)
            assert again.status_code == 202
            assert [again.json()["job"]["job_id"]] == [
                v["job"]["job_id"] for v in client.get("/v1/jobs").json()["items"]
            ]
        seen += 1
        step += 1
    assert seen >= 4, "the store was never asked"


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_in_pages_that_end(client: TestClient, jobs: Jobs) -> None:
    ids = [jobs.submit(CorpusJob(document_ids=(new_id("doc"),))).job_id for _ in range(4)]
    listed: list[str] = []
    after: str | None = None
    pages = 0
    while pages == 0 or after:
        page = client.get("/v1/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        listed += [v["job"]["job_id"] for v in page["items"]]
        after, pages = page["next_after"], pages + 1
    assert (listed, pages) == (ids, 2)


def test_one_job_that_cannot_be_read_is_named_and_hides_no_other(
    client: TestClient, jobs: Jobs, store: MemoryStore
) -> None:
    ids = [jobs.submit(CorpusJob(document_ids=(new_id("doc"),))).job_id for _ in range(3)]
    store.put(f"jobs/corpus/{ids[1]}/spec.json", b'{"kind":"corpus","of":"a later version"}')
    page = client.get("/v1/jobs").json()
    assert [v["job"]["job_id"] for v in page["items"]] == [ids[0], ids[2]]
    assert ids[1] in page["unreadable"][0]


def test_a_list_names_its_limits(client: TestClient) -> None:
    assert "limit" in is_problem(client.get("/v1/jobs?limit=0"), 422, "invalid_request")["detail"]
    assert "after" in is_problem(client.get("/v1/jobs?after=../x"), 422, "invalid_request")["detail"]
    assert "train" in is_problem(client.get("/v1/jobs?kind=train"), 404, "not_found")["detail"]
    assert client.get("/v1/jobs?kind=crawl").json() == {"items": [], "next_after": None, "unreadable": []}


def test_a_job_that_is_not_here_is_not_found(client: TestClient) -> None:
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/replay"), ("GET", "/events")):
        is_problem(client.request(method, f"/v1/jobs/{new_id('job')}{path}"), 404, "not_found")
    is_problem(client.get("/v1/jobs/nonsense"), 422, "invalid_request")


def test_cancel_and_replay(client: TestClient) -> None:
    job_id = client.post("/v1/corpora", json=BODY).json()["job"]["job_id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    replayed = client.post(f"/v1/jobs/{job_id}/replay").json()
    assert (replayed["state"], replayed["life"]) == ("queued", 2)


def test_what_has_succeeded_is_not_replayed(client: TestClient, jobs: Jobs) -> None:
    job = jobs.submit(CorpusJob(document_ids=(new_id("doc"),)))
    finish(jobs, job)
    is_problem(client.post(f"/v1/jobs/{job.job_id}/replay"), 409, "conflict")


def finish(jobs: Jobs, job: Any) -> None:
    attempt = jobs.claim("corpus", job.job_id, "w")
    assert attempt is not None
    jobs.renew(attempt, Progress(stage="splitting", done=1, total=2))
    jobs.succeed(attempt, Output(manifest_key=f"corpora/{job.corpus_id}/manifest.json", manifest={}))


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_events_of_a_finished_job_end_at_once(client: TestClient, jobs: Jobs) -> None:
    job = jobs.submit(CorpusJob(document_ids=(new_id("doc"),)))
    finish(jobs, job)
    answer = client.get(f"/v1/jobs/{job.job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [e["state"] for e in events_of(answer.text)] == ["succeeded"]


def test_events_tell_changes_outlive_a_store_that_is_down_and_end_with_the_job(
    client: TestClient, jobs: Jobs, store: DownStore
) -> None:
    job = jobs.submit(CorpusJob(document_ids=(new_id("doc"),)))
    looks: list[str] = []
    view = jobs.view

    def scripted(kind: str, job_id: str) -> Any:
        """Between the stream's looks the world moves on."""
        looks.append(job_id)
        if len(looks) == 2:
            raise DependencyDown("no store")
        if len(looks) == 4:
            finish(jobs, job)
        return view(kind, job_id)

    jobs.view = scripted  # type: ignore[method-assign]
    answer = client.get(f"/v1/jobs/{job.job_id}/events")
    assert [e["state"] for e in events_of(answer.text)] == ["queued", "succeeded"]
