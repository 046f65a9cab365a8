"""The trainer's routes over a fake store."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_trainer.api import models_router, runs_router

RUN, OTHER = "run_" + "1" * 32, "run_" + "2" * 32


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> Iterator[TestClient]:
    jobs = Jobs(store, ring=lambda kind, job_id: None, bury=lambda kind, value, reason: None)
    app = create_app("trainer", jobs=jobs, kinds=["train"], checks={})
    app.include_router(runs_router(store, jobs))
    app.include_router(models_router(store))
    with TestClient(app) as client:
        yield client


def lines(*steps: int) -> bytes:
    metrics = [
        StepMetrics(
            step=n, epoch=1, loss=1 / n, learning_rate=1e-3, gradient_norm=1, tokens=1, tokens_per_s=1, seconds=1
        )
        for n in steps
    ]
    return b"".join(m.to_json() + b"\n" for m in [EvalMetrics(step=0, epoch=0, eval_loss=3.0), *metrics])


def test_a_run_is_submitted_once_for_a_key(client: TestClient) -> None:
    body = {"dataset_id": "ds_" + "1" * 32, "epochs": 2}
    first = client.post("/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    again = client.post("/v1/runs", json=body, headers={"Idempotency-Key": "k"})
    assert first.status_code == again.status_code == 202
    assert first.headers["Location"] == again.headers["Location"]
    assert client.post("/v1/runs", json={**body, "epochs": 0}).status_code == 422


def test_the_newest_attempts_metrics_are_the_runs(client: TestClient, store: MemoryStore) -> None:
    store.put(f"runs/{RUN}/attempt-2/metrics.jsonl", lines(1))
    store.put(f"runs/{RUN}/attempt-10/metrics.jsonl", lines(1, 2))
    store.put(f"runs/{OTHER}/attempt-1/metrics.jsonl", lines(1))
    view = client.get(f"/v1/runs/{RUN}").json()
    assert (view["attempt"], view["last_step"]["step"], view["last_eval"]["eval_loss"]) == (10, 2, 3.0)
    assert client.get(f"/v1/runs/{RUN}/metrics").content == lines(1, 2)
    page = client.get("/v1/runs", params={"limit": 1}).json()
    assert [r["run_id"] for r in page["items"]] == [RUN]
    rest = client.get("/v1/runs", params={"after": page["next_after"]}).json()
    assert [r["run_id"] for r in rest["items"]] == [OTHER]
    assert rest["next_after"] is None


def test_what_is_not_there_is_a_problem(client: TestClient) -> None:
    for path in (f"/v1/runs/{RUN}", f"/v1/runs/{RUN}/metrics", "/v1/models/mdl_" + "1" * 32):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/models").json() == {"items": [], "next_after": None, "unreadable": []}
