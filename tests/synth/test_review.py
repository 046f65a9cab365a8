"""The review over HTTP: what reviewers see, decide, take back, and that none of them loses what another decided."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from datasets_made import a_reject, put_dataset, put_texts, records_of
from fastapi.testclient import TestClient

from textmill.contracts.base import new_id
from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.review import Decision
from textmill.errors import TextmillError
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore, ObjectStore, S3Store
from textmill_synth.api import datasets_router
from textmill_synth.review import ReviewLog, reject_id


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def dataset(store: MemoryStore) -> DatasetManifest:
    return a_dataset(store)


@pytest.fixture
def client(store: MemoryStore) -> Iterator[TestClient]:
    with TestClient(app(store)) as client:
        yield client


def app(store: ObjectStore) -> Any:
    jobs = Jobs(store)
    app = create_app("synth", jobs=jobs, kinds=["synth", "mix", "freeze"], checks={})
    app.include_router(datasets_router(store, jobs))
    return app


def a_dataset(store: ObjectStore, documents: int = 4) -> DatasetManifest:
    corpus_id = put_texts(store, documents)
    rejects = [a_reject(store, corpus_id, 0), a_reject(store, corpus_id, 1, "ungrounded_number")]
    return put_dataset(store, corpus_id, records_of(store, corpus_id, evaluated=(3,)), rejects)


class Reviewer:
    """One person at the API."""

    def __init__(self, client: TestClient, manifest: DatasetManifest, name: str) -> None:
        self._client = client
        self._base = f"/v1/datasets/{manifest.dataset_id}/review"
        self._name = name

    def get(self, what: str, **where: Any) -> Any:
        reply = self._client.get(f"{self._base}/{what}", params=where)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def records(self, **where: Any) -> list[Any]:
        items: list[Any] = self.get("records", **where)["items"]
        return items

    def decide(self, action: str, expect: int = 201, **what: Any) -> Any:
        body = {"action": action, **what}
        reply = self._client.post(f"{self._base}/decisions", json=body, headers={"X-Author": self._name})
        assert reply.status_code == expect, reply.text
        return reply.json()

    def edit(self, record_id: str, based_on: int, expect: int = 201, override: bool = False, **changes: str) -> Any:
        what = {"record_id": record_id, "based_on": based_on, "changes": changes, "override": override}
        return self.decide("edit", expect, **what)


@pytest.fixture
def ann(client: TestClient, dataset: DatasetManifest) -> Reviewer:
    return Reviewer(client, dataset, "ann")


@pytest.fixture
def bo(client: TestClient, dataset: DatasetManifest) -> Reviewer:
    return Reviewer(client, dataset, "bo")


def ids(items: list[Any]) -> list[str]:
    return [item["record"]["record_id"] for item in items]


def test_records_are_filtered_by_all_that_is_given(ann: Reviewer) -> None:
    everything = ann.records()
    assert len(everything) == 6 + 2 + 3
    assert {item["status"] for item in everything} == {"pending"}
    assert {item["record"]["split"] for item in ann.records(split="eval")} == {"eval"}
    assert {item["record"]["strategy"] for item in ann.records(strategy="summary")} == {"summary"}
    assert {item["record"]["axis"] for item in ann.records(axis="register")} == {"register"}
    assert len(ann.records(split="train", strategy="qa", axis="plain")) == 3
    document_id = everything[0]["record"]["document_id"]
    assert {item["record"]["document_id"] for item in ann.records(document_id=document_id)} == {document_id}
    assert [i["record"]["messages"][0]["content"] for i in ann.records(contains="MAKE UP HEXAGRAM 2")] == [
        "Which trigrams make up Hexagram 2?"
    ]
    assert ann.records(contains="nowhere to be found") == []


def test_pages_hold_every_record_once(ann: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_synth.reviewing.SCAN_ROWS", 5)
    found, after, pages = list[str](), "0", 0
    while after is not None:
        page = ann.get("records", after=after, limit=4)
        found += ids(page["items"])
        after, pages = page["next_after"], pages + 1
    assert len(found) == len(set(found)) == 11
    assert pages > 3


def test_who_decided_what_and_when_is_said(ann: Reviewer, bo: Reviewer) -> None:
    first, second = ids(ann.records())[:2]
    ann.decide("approve", record_ids=[first])
    decision = bo.decide("reject", record_ids=[second, second], reason="about the wrong year")
    assert (decision["author"], decision["number"], decision["records"]) == ("bo", 2, 1)
    assert ids(ann.records(status="approved")) == [first]
    [rejected] = ann.records(reason="WRONG YEAR")
    assert rejected["status"] == "rejected"
    assert rejected["last_decision"] == decision
    listed = ann.get("decisions", limit=1)
    assert [d["author"] for d in listed["items"]] == ["ann"]
    assert [d["author"] for d in ann.get("decisions", after=listed["next_after"])["items"]] == ["bo"]
    assert [d["number"] for d in ann.get("decisions", author="bo")["items"]] == [2]
    summary = ann.get("summary")
    assert summary["reviewers"] == {"ann": 1, "bo": 1}
    assert sum(counts.get("pending", 0) for counts in summary["records"].values()) == 9


def test_an_edit_is_a_new_version_with_its_author(ann: Reviewer, bo: Reviewer) -> None:
    item = ann.records(split="train")[0]
    record_id, answer = item["record"]["record_id"], item["record"]["messages"][1]["content"]
    ann.edit(record_id, 0, answer=answer.replace("has", "shows"))
    bo.edit(record_id, 1, question="Say what is below and above in it?", system="Be brief.")
    [edited] = [i for i in ann.records(status="edited") if i["record"]["record_id"] == record_id]
    assert [m["role"] for m in edited["record"]["messages"]] == ["system", "user", "assistant"]
    assert "shows" in edited["record"]["messages"][2]["content"]
    assert (edited["version"], edited["record"]["edited_by"]) == (2, "bo")
    history = ann.get(f"records/{record_id}")
    assert [(v["version"], v["author"]) for v in history["versions"]] == [(0, None), (1, "ann"), (2, "bo")]
    assert history["versions"][0]["record"] == item["record"]
    assert edited["record"]["evidence_span"] == item["record"]["evidence_span"], "lineage stays"


def test_an_edit_on_another_version_is_a_conflict(ann: Reviewer, bo: Reviewer) -> None:
    record_id = ids(ann.records())[0]
    ann.edit(record_id, 0, question="What are its two trigrams?")
    problem = bo.edit(record_id, 0, expect=409, question="Which trigrams has it?")
    assert problem["type"] == "urn:textmill:conflict"
    assert "version 1" in problem["detail"]
    assert "'ann'" in problem["detail"]
    bo.edit(record_id, 1, question="Which trigrams has it?")


def test_an_answer_that_fails_the_checks_needs_an_override_which_is_recorded(ann: Reviewer) -> None:
    record_id = ids(ann.records(split="train"))[0]
    problem = ann.edit(record_id, 0, expect=422, answer="It was drawn in the year 1871.")
    assert problem["type"] == "urn:textmill:edit_fails_checks"
    assert "override" in problem["detail"]
    decision = ann.edit(record_id, 0, answer="It was drawn in the year 1871.", override=True)
    assert decision["finding"]
    assert ann.get("summary")["overrides"] == 1
    assert ann.get(f"records/{record_id}")["versions"][1]["finding"] == decision["finding"]
    assert ann.get(f"records/{record_id}")["versions"][1]["record"]["key_facts"] == []


def test_a_fact_in_the_new_question_does_not_ground_the_new_answer(ann: Reviewer) -> None:
    item = ann.records(split="train")[0]
    answer = item["record"]["messages"][1]["content"].rstrip(".") + " and 1871 lines."
    question = "What is below and above in it, with its 1871 lines?"
    ann.edit(item["record"]["record_id"], 0, expect=422, question=question, answer=answer)


def test_a_decision_about_many_is_one_object(ann: Reviewer, store: MemoryStore, dataset: DatasetManifest) -> None:
    decision = ann.decide("approve", filter={"split": "train", "status": "pending"})
    assert decision["records"] == 6
    assert len(list(store.list(f"reviews/{dataset.dataset_id}/"))) == 1
    assert len(ann.records(status="approved")) == 6
    assert ann.decide("approve", 400, filter={"split": "train", "status": "pending"})["detail"].startswith("no record")
    assert ann.decide("reject", 400, filter={"contains": "nowhere"}, reason="x")["type"] == "urn:textmill:bad_request"


def test_bulk_is_bounded(ann: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_synth.reviewing.MAX_TARGETS", 5)
    assert "more than the 5" in ann.decide("approve", 400, filter={"split": "train"})["detail"]


def test_undo_takes_back_ones_own_last_decision_or_a_given_one(ann: Reviewer, bo: Reviewer) -> None:
    first, second = ids(ann.records())[:2]
    ann.decide("approve", record_ids=[first])
    bo.decide("reject", record_ids=[first, second], reason="no")
    ann.decide("undo")
    assert ids(ann.records(status="rejected")) == [first, second], "bo's decision stands"
    ann.decide("undo", decision=2)
    assert {item["status"] for item in ann.records()} == {"pending"}
    assert "undone by decision 4" in ann.decide("undo", 409, decision=2)["detail"]
    ann.decide("undo", decision=4)
    assert ids(ann.records(status="rejected")) == [first, second], "an undo can be undone"
    assert "no decision" in ann.decide("undo", 404)["detail"]
    assert [d["undone_by"] for d in ann.get("decisions")["items"]] == [3, None, None, 5, None]


def test_undoing_an_edit_brings_the_text_before_it_back(ann: Reviewer) -> None:
    item = ann.records()[0]
    record_id = item["record"]["record_id"]
    ann.edit(record_id, 0, question="What are its two trigrams?")
    ann.edit(record_id, 1, question="Which trigrams has it?")
    assert "undo 2 first" in ann.decide("undo", 409, decision=1)["detail"]
    ann.decide("undo")
    assert ann.get(f"records/{record_id}")["versions"][-1]["record"]["messages"][0]["content"].startswith(
        "What are its"
    )
    ann.decide("undo")
    assert ann.records()[0] == {**item, "last_decision": None}


def test_approving_after_an_edit_approves_the_edited_text(ann: Reviewer) -> None:
    record_id = ids(ann.records())[0]
    ann.decide("approve", record_ids=[record_id])
    ann.edit(record_id, 0, question="What are its two trigrams?")
    assert ids(ann.records(status="edited")) == [record_id], "an edit is to be approved anew"
    ann.decide("approve", record_ids=[record_id])
    [approved] = ann.records(status="approved")
    assert approved["version"] == 2


def test_what_synth_rejected_is_listed_and_taken_up_by_an_edit(ann: Reviewer) -> None:
    found = ann.get("rejects", reason="truncated")["items"]
    assert [item["reject_id"] for item in found] == [reject_id(0)]
    assert ann.get("rejects", contains="stands FOR", strategy="qa")["items"][0] == found[0]
    assert len(ann.get("rejects", limit=1)["items"]) == 1
    assert ann.get("rejects", limit=1, after=1)["items"][0]["reject_id"] == reject_id(1)
    assert "edit it" in ann.decide("approve", 400, record_ids=[reject_id(0)])["detail"]
    assert "its question and its answer" in ann.edit(reject_id(0), 0, 400, answer="A leader.")["detail"]
    answer = "It stands for a leader who waits near the fire."
    ann.edit(reject_id(0), 0, 422, question="What does it stand for?", answer="It stands for 12 leaders.")
    ann.edit(reject_id(0), 0, question="What does it stand for?", answer=answer)
    assert ann.get("rejects", status="edited")["items"][0]["changes"]["answer"] == answer
    ann.decide("approve", record_ids=[reject_id(0)])
    assert ann.get("summary")["promoted"] == 1
    ann.edit(reject_id(7), 0, 404, question="What?", answer="A leader.")
    assert reject_id(7) in ann.decide("reject", 404, record_ids=[reject_id(7)], reason="x")["detail"]


def test_decisions_have_an_author_and_name_what_is_there(client: TestClient, dataset: DatasetManifest) -> None:
    path = f"/v1/datasets/{dataset.dataset_id}/review/decisions"
    body = {"action": "approve", "filter": {"split": "train"}}

    def post(body: Mapping[str, Any], **headers: str) -> tuple[int, str]:
        reply = client.post(path, json=body, headers=headers)
        assert reply.status_code == 201 or reply.headers["content-type"] == "application/problem+json"
        return reply.status_code, reply.json().get("detail", "")

    assert "X-Author" in post(body)[1]
    assert post({**body, "author": "李"}, **{"X-Author": "ann"})[0] == 400
    assert post({**body, "author": "李"})[0] == 201
    assert post({"action": "approve", "author": "a"})[0] == 422
    assert post({**body, "record_ids": [f"rec_{'0' * 32}"], "author": "a"})[0] == 422
    assert post({"action": "approve", "record_ids": [f"rec_{'0' * 32}"], "author": "a"})[0] == 404
    assert post({"action": "reject", "filter": {}, "author": "a"})[0] == 422
    assert post({"action": "burn", "author": "a"})[0] == 422
    unknown = f"/v1/datasets/{new_id('ds')}/review"
    assert client.get(f"{unknown}/records").status_code == 404
    assert client.get(f"{unknown}/decisions").status_code == 404
    assert client.post(f"{unknown}/decisions", json={"action": "undo", "author": "a"}).status_code == 404
    assert client.get(f"/v1/datasets/{dataset.dataset_id}/review/records", params={"status": "x"}).status_code == 422


def test_every_route_says_what_it_does(client: TestClient) -> None:
    paths = {p: methods for p, methods in client.get("/openapi.json").json()["paths"].items() if "/review/" in p}
    assert len(paths) == 5
    for methods in paths.values():
        assert all(len(operation["summary"]) > 20 for operation in methods.values())


def test_two_services_lose_no_decision_of_each_other(store: MemoryStore) -> None:
    dataset_id, logs = new_id("ds"), [ReviewLog(store), ReviewLog(store), ReviewLog(store)]
    start = threading.Barrier(12)

    def decide(number: int) -> None:
        start.wait(60)
        for turn in range(10):
            decision = approval(dataset_id, f"r{number}", f"rec_{number}_{turn}")
            logs[number % 3].append(dataset_id, lambda state, decision=decision: decision)  # type: ignore[misc]

    with ThreadPoolExecutor(12) as reviewers:
        list(reviewers.map(decide, range(12)))
    states = [log.state(dataset_id) for log in (*logs, ReviewLog(store))]
    assert {state.number for state in states} == {120}
    for number in range(12):
        assert all(s.standing(f"rec_{number}_{turn}").status == "approved" for s in states for turn in range(10))
    assert states[0].reviewers() == {f"r{number}": 10 for number in range(12)}


def test_an_edit_race_has_one_winner(store: MemoryStore, dataset: DatasetManifest) -> None:
    with TestClient(app(store)) as one, TestClient(app(store)) as other:
        pair = [Reviewer(one, dataset, "ann"), Reviewer(other, dataset, "bo")]
        record_id = ids(pair[0].records())[0]
        start = threading.Barrier(2)

        def edit(reviewer: Reviewer) -> int:
            start.wait(60)
            base, what = f"/v1/datasets/{dataset.dataset_id}/review/decisions", {"question": "Which trigrams has it?"}
            body = {"action": "edit", "record_id": record_id, "based_on": 0, "changes": what, "author": "x"}
            return reviewer._client.post(base, json=body).status_code

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(edit, pair)) == [201, 409]


class ForgetfulStore(MemoryStore):
    """Writes, and says of the first write that it didn't."""

    answered = False

    def create(self, key: str, data: bytes) -> bool:
        created, self.answered, first = super().create(key, data), True, not self.answered
        return created and not first


def test_a_write_whose_answer_was_lost_counts_once() -> None:
    store, dataset_id = ForgetfulStore(), new_id("ds")
    log = ReviewLog(store)
    assert log.append(dataset_id, lambda state: approval(dataset_id, "ann", "rec_1")).number == 1
    assert log.append(dataset_id, lambda state: approval(dataset_id, "ann", "rec_2")).number == 2
    assert ReviewLog(store).state(dataset_id).number == 2


def test_a_hole_in_the_log_is_said_and_not_read_over(store: MemoryStore) -> None:
    dataset_id, log = new_id("ds"), ReviewLog(store)
    for number in range(3):
        log.append(dataset_id, lambda state, number=number: approval(dataset_id, "ann", f"rec_{number}"))  # type: ignore[misc]
    store.delete(f"reviews/{dataset_id}/{2:012d}.json")
    with pytest.raises(TextmillError, match="restore"):
        ReviewLog(store).state(dataset_id)


def test_state_is_brought_up_to_date_by_what_is_new_alone(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_id, log = new_id("ds"), ReviewLog(store)
    for number in range(5):
        ReviewLog(store).append(dataset_id, lambda state, n=number: approval(dataset_id, "ann", f"rec_{n}"))  # type: ignore[misc]
    assert log.state(dataset_id).number == 5
    ReviewLog(store).append(dataset_id, lambda state: approval(dataset_id, "ann", "rec_5"))
    read: list[str] = []
    get = store.get

    def counted(key: str) -> bytes:
        read.append(key)
        return get(key)

    monkeypatch.setattr(store, "get", counted)
    assert log.state(dataset_id).number == 6
    assert read == [f"reviews/{dataset_id}/{6:012d}.json"]


def test_ten_thousand_records_are_one_object(store: MemoryStore) -> None:
    dataset_id, log = new_id("ds"), ReviewLog(store)
    names = [f"rec_{number:032x}" for number in range(10_000)]
    log.append(dataset_id, lambda state: approval(dataset_id, "ann", *names))
    [stored] = store.list(f"reviews/{dataset_id}/")
    assert stored.size_bytes < 500_000
    assert all(ReviewLog(store).state(dataset_id).standing(name).status == "approved" for name in names[::1000])


@pytest.mark.slow
def test_on_a_real_store(s3_store: S3Store) -> None:
    manifest = a_dataset(s3_store)
    with TestClient(app(s3_store)) as one, TestClient(app(s3_store)) as other:
        ann, bo = Reviewer(one, manifest, "ann"), Reviewer(other, manifest, "bo")
        record_id = ids(ann.records(split="train"))[0]
        ann.edit(record_id, 0, question="What are its two trigrams?")
        bo.edit(record_id, 0, 409, question="Which trigrams has it?")
        with ThreadPoolExecutor(8) as threads:
            todo = [(reviewer, name) for name in ids(ann.records()) for reviewer in (ann, bo)]
            list(threads.map(lambda pair: pair[0].decide("approve", record_ids=[pair[1]]), todo))
        ann.decide("reject", filter={"split": "eval"}, reason="no")
        bo.decide("undo", decision=1 + len(todo) + 1)
        for reviewer in (ann, bo):
            assert reviewer.get("summary")["decisions"] == len(todo) + 3
            assert len(reviewer.records(status="approved")) == 11


def approval(dataset_id: str, author: str, *record_ids: str) -> Decision:
    return Decision(
        number=0,
        decision_id=new_id("rev"),
        dataset_id=dataset_id,
        author=author,
        action="approve",
        record_ids=record_ids,
    )
