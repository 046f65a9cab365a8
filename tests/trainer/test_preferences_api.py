"""Uploading preference pairs: all lines or none, each bad one named, and twice is once."""

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from textmill.contracts.preferences import PreferencePair
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_trainer.preferences_api import preferences_router

DOCUMENT = "doc_" + "4" * 32
GOOD = [
    {"prompt": "What is Qian?", "chosen": "Six yang lines.", "rejected": "Eight lines.", "document_id": DOCUMENT},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And Kun?"}],
     "chosen": "Six yin lines.", "rejected": "I don't know."},
]  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> Iterator[TestClient]:
    jobs = Jobs(store, ring=lambda kind, job_id: None, bury=lambda kind, value, reason: None)
    app = create_app("trainer", jobs=jobs, kinds=["train"], checks={})
    app.include_router(preferences_router(store))
    with TestClient(app) as client:
        yield client


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def test_pairs_are_kept_once(client: TestClient, store: MemoryStore) -> None:
    first = client.post("/v1/preferences", content=lines(*GOOD, "", GOOD[0]))
    assert first.status_code == 201
    manifest = first.json()
    assert (manifest["pairs"], manifest["document_ids"]) == (2, [DOCUMENT])
    assert first.headers["Location"] == f"/v1/preferences/{manifest['preferences_id']}"
    pairs = [PreferencePair.model_validate_json(line) for line in store.get(manifest["pairs_key"]).splitlines()]
    assert [m.content for m in pairs[0].messages] == ["What is Qian?"]
    assert [m.role for m in pairs[1].messages] == ["system", "user"]
    again = client.post("/v1/preferences", content=lines(*GOOD))
    assert again.status_code == 200
    assert again.json() == manifest
    assert client.get(first.headers["Location"]).json() == manifest
    assert client.post("/v1/preferences", content=lines(GOOD[0])).json()["preferences_id"] != manifest["preferences_id"]


def test_every_bad_line_is_named_and_nothing_is_kept(client: TestClient, store: MemoryStore) -> None:
    bad = [
        "not json",
        {"prompt": "?", "chosen": "a"},
        {"prompt": "?", "chosen": "a", "rejected": "a"},
        {"chosen": "a", "rejected": "b"},
        {"prompt": "?", "chosen": "a", "rejected": "b", "weight": 2},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "chosen": "a",
         "rejected": "b"},
    ]  # fmt: skip
    answer = client.post("/v1/preferences", content=lines(GOOD[0], *bad))
    assert answer.status_code == 400
    told = answer.json()["detail"]
    for number, why in enumerate(
        ["Invalid JSON", "rejected: Field required", "are the same", "either 'prompt' or 'messages'",
         "weight: Extra inputs", "must end before the answer"], start=2
    ):  # fmt: skip
        assert any(part.startswith(f"line {number}: ") and why in part for part in told.split("; ")), (number, told)
    assert "line 1:" not in told
    assert not list(store.list("preferences/"))


def test_many_bad_lines_are_counted(client: TestClient) -> None:
    told = client.post("/v1/preferences", content=lines(*["x"] * 30)).json()["detail"]
    assert "line 20:" in told
    assert "line 21:" not in told
    assert told.endswith("and 10 more lines")


@pytest.mark.parametrize("body", ["", "\n \n"])
def test_an_empty_upload_is_refused(client: TestClient, body: str) -> None:
    assert client.post("/v1/preferences", content=body).status_code == 400


def test_pairs_that_are_not_there_are_a_problem(client: TestClient) -> None:
    answer = client.get("/v1/preferences/prf_" + "0" * 32)
    assert answer.status_code == 404
    assert "POST /v1/preferences" in answer.json()["detail"]
