"""The HTTP routes, from submission through the worker to every read, on a real server for the LLM."""

import io
import json
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from corpora import put_corpus, settings, zhouyi_questions, zhouyi_texts
from datasets_made import put_dataset, put_texts, records_of
from fastapi.testclient import TestClient
from fault_llm import FaultLlm, Say

from textmill.contracts.base import new_id
from textmill.contracts.datasets import Evidence
from textmill.contracts.jobs import JobKind, SynthJob
from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import Handler, JobContext
from textmill_synth.api import datasets_router
from textmill_synth.freeze import FreezeHandler
from textmill_synth.mixture import MixHandler
from textmill_synth.stored import StoredDatasets
from textmill_synth.worker import SynthHandler


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store: MemoryStore) -> Iterator[TestClient]:
    jobs = Jobs(store)
    app = create_app("synth", jobs=jobs, kinds=["synth", "mix", "freeze"], checks={})
    app.include_router(datasets_router(store, jobs))
    with TestClient(app) as client:
        yield client


def submit(client: TestClient, store: MemoryStore, llm: FaultLlm, language: str = "en", encoding: str = "utf-8") -> str:
    """Submit over HTTP and do the job as a worker would. Returns the dataset id."""
    corpus_id = put_corpus(store, zhouyi_texts(language, 3), language, encoding)  # type: ignore[arg-type]
    questions = zhouyi_questions(language).model_dump(mode="json")  # type: ignore[arg-type]
    body = {"corpus_id": corpus_id, "question_sets": [questions], "context": "sentence"}
    reply = client.post("/v1/datasets", json=body)
    assert reply.status_code == 202
    jobs = Jobs(store)
    job_id = reply.json()["job"]["job_id"]
    attempt = jobs.claim("synth", job_id, "w")
    assert attempt is not None
    assert isinstance(attempt.job, SynthJob)
    jobs.succeed(
        attempt, SynthHandler(settings(llm.url))(attempt.job, JobContext(store, attempt.number, attempt.scratch))
    )
    return attempt.job.dataset_id


def test_a_dataset_from_submission_to_records(client: TestClient, store: MemoryStore, llm: FaultLlm) -> None:
    dataset_id = submit(client, store, llm)
    manifest = client.get(f"/v1/datasets/{dataset_id}").json()
    assert manifest["counts"]["accepted"] == 9
    assert [m["dataset_id"] for m in client.get("/v1/datasets").json()["items"]] == [dataset_id]
    by_document = client.get("/v1/datasets", params={"document_id": manifest["document_ids"][0]}).json()["items"]
    assert len(by_document) == 1
    assert client.get("/v1/datasets", params={"document_id": "doc_x"}).json()["items"] == []
    assert client.get(f"/v1/datasets/{new_id('ds')}").status_code == 404


def test_records_come_in_pages(client: TestClient, store: MemoryStore, llm: FaultLlm) -> None:
    dataset_id = submit(client, store, llm)
    total = client.get(f"/v1/datasets/{dataset_id}").json()["records"]["train"]
    found: list[str] = []
    after: str | None = "0"
    while after is not None:
        page = client.get(f"/v1/datasets/{dataset_id}/records", params={"after": after, "limit": 50}).json()
        found += [record["record_id"] for record in page["items"]]
        after = page["next_after"]
    assert len(found) == len(set(found)) == total
    heldout = client.get(f"/v1/datasets/{dataset_id}/records", params={"split": "heldout"}).json()["items"]
    assert {record["split"] for record in heldout} == {"heldout"}
    assert client.get(f"/v1/datasets/{dataset_id}/records", params={"split": "eval"}).json()["items"] == []


def test_rejects_and_card(client: TestClient, store: MemoryStore, llm: FaultLlm) -> None:
    llm.always = Say("It has")
    dataset_id = submit(client, store, llm)
    page = client.get(f"/v1/datasets/{dataset_id}/rejects", params={"limit": 1}).json()
    assert [reject["reason"] for reject in page["items"]] == ["truncated"]
    assert page["next_after"] == "1"
    card = client.get(f"/v1/datasets/{dataset_id}/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert dataset_id in card.text


def test_exports(client: TestClient, store: MemoryStore, llm: FaultLlm) -> None:
    dataset_id = submit(client, store, llm)
    rows = client.get(f"/v1/datasets/{dataset_id}").json()["records"]["train"]

    def export(name: str) -> bytes:
        reply = client.get(f"/v1/datasets/{dataset_id}/exports/{name}")
        assert reply.status_code == 200
        assert f"{dataset_id}-" in reply.headers["content-disposition"]
        return reply.content

    assert pq.read_table(io.BytesIO(export("parquet"))).num_rows == rows
    fields = {"alpaca": "output", "sharegpt": "conversations", "chatglm3": "conversations", "openai": "messages"}
    for name, field in {**fields, "chatml": "messages"}.items():
        lines = [json.loads(line) for line in export(name).splitlines()]
        assert len(lines) == rows
        assert field in lines[0]
    assert export("csv").decode().count("content,summary") == 1
    assert export("notes") == b""
    assert json.loads(export("croissant"))["@type"] == "sc:Dataset"
    notes = client.get(f"/v1/datasets/{dataset_id}").json()["export_notes"]
    assert {note["written"] for note in notes.values()} == {rows}
    assert client.get(f"/v1/datasets/{dataset_id}/exports/xml").status_code == 404
    assert client.get(f"/v1/datasets/{dataset_id}/exports/csv", params={"split": "eval"}).status_code == 404


@pytest.mark.parametrize(("language", "encoding"), [("en", "utf-8"), ("zh", "gb18030")])
def test_lineage_ends_at_the_original_sentence(
    client: TestClient, store: MemoryStore, llm: FaultLlm, language: str, encoding: str
) -> None:
    dataset_id = submit(client, store, llm, language, encoding)
    record = client.get(f"/v1/datasets/{dataset_id}/records", params={"limit": 1}).json()["items"][0]
    lineage = client.get(f"/v1/records/{record['record_id']}/lineage", params={"dataset_id": dataset_id}).json()
    assert lineage["record"] == record
    assert lineage["evidence"]["verbatim"]
    assert lineage["evidence"]["original"] == record["evidence"]
    assert lineage["document"]["encoding"]["name"] == encoding
    span, raw = record["evidence_span"], store.get(f"raw/{record['document_sha256']}")
    assert raw[span["byte_start"] : span["byte_end"]].decode(encoding) == record["evidence"]
    unknown = f"/v1/records/rec_{'0' * 32}/lineage"
    assert client.get(unknown, params={"dataset_id": dataset_id}).status_code == 404


def test_a_dataset_that_a_model_was_trained_on_is_not_deleted(
    client: TestClient, store: MemoryStore, llm: FaultLlm
) -> None:
    dataset_id = submit(client, store, llm)
    model = a_model(dataset_id)
    store.put(f"models/{model.model_id}/manifest.json", model.to_json())
    refused = client.delete(f"/v1/datasets/{dataset_id}")
    assert refused.status_code == 409
    assert model.model_id in refused.json()["detail"]
    store.delete(f"models/{model.model_id}/manifest.json")
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    assert client.get(f"/v1/datasets/{dataset_id}").status_code == 404
    assert list(store.list("datasets/")) == []


def test_a_question_set_that_cannot_work_is_refused_at_submission(client: TestClient) -> None:
    body = {
        "corpus_id": new_id("cor"),
        "question_sets": [
            {"language": "en", "subject": "x", "questions": [{"id": "a", "key": "b", "ask": ["What is {name}?"]}]}
        ],
    }
    reply = client.post("/v1/datasets", json=body)
    assert reply.status_code == 400
    assert "(?P<key>...)" in reply.json()["detail"]


def do(client: TestClient, store: MemoryStore, path: str, body: object, kind: JobKind, handler: Handler) -> str:
    """Submit over HTTP and do the job as a worker would. Returns the dataset id."""
    reply = client.post(path, json=body)
    assert reply.status_code == 202, reply.text
    job, jobs = reply.json()["job"], Jobs(store)
    attempt = jobs.claim(kind, job["job_id"], "w")
    assert attempt is not None
    jobs.succeed(attempt, handler(attempt.job, JobContext(store, attempt.number, attempt.scratch)))
    assert client.get(f"/v1/jobs/{job['job_id']}").json()["state"] == "succeeded"
    dataset_id: str = job["dataset_id"]
    return dataset_id


def test_a_mixture_and_a_frozen_set_from_submission_to_deletion(client: TestClient, store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    parent = put_dataset(store, corpus_id, records_of(store, corpus_id)).dataset_id
    sources = [{"dataset_id": parent, "epochs": 2}]
    mixed = do(client, store, "/v1/mixtures", {"sources": sources}, "mix", MixHandler())
    assert client.get(f"/v1/datasets/{mixed}").json()["records"]["train"] == 16
    assert client.post("/v1/mixtures", json={"sources": sources * 2}).status_code == 400
    decision = {"action": "reject", "filter": {"split": "heldout"}, "reason": "x", "author": "ann"}
    assert client.post(f"/v1/datasets/{mixed}/review/decisions", json=decision).status_code == 201
    frozen = do(client, store, "/v1/freezes", {"reviewed_id": mixed}, "freeze", FreezeHandler())
    manifest = client.get(f"/v1/datasets/{frozen}").json()
    assert (manifest["parent_dataset_id"], manifest["reviewers"]) == (mixed, ["ann"])
    assert (manifest["records"]["heldout"], manifest["counts"]["rejected_by_reason"]) == (0, {"review_rejected": 4})
    for dataset_id, child in ((parent, mixed), (mixed, frozen)):
        refused = client.delete(f"/v1/datasets/{dataset_id}")
        assert refused.status_code == 409
        assert child in refused.json()["detail"]
    assert [client.delete(f"/v1/datasets/{d}").status_code for d in (frozen, mixed, parent)] == [204] * 3


def test_dropped_rows_come_in_pages(client: TestClient, store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    records = records_of(store, corpus_id)
    twins = [r.model_copy(update={"record_id": f"rec_{n:032x}"}) for n, r in enumerate(records) if r.split == "train"]
    dataset_id = put_dataset(store, corpus_id, [*records, *twins]).dataset_id
    page = client.get(f"/v1/datasets/{dataset_id}/drops", params={"limit": 5}).json()
    rest = client.get(f"/v1/datasets/{dataset_id}/drops", params={"limit": 5, "after": page["next_after"]}).json()
    assert {drop["rule"] for drop in page["items"]} == {"near_duplicate"}
    assert (len(page["items"]), len(rest["items"]), rest["next_after"]) == (5, 3, None)


def test_lineage_leads_to_every_passage_that_an_answer_draws_on(client: TestClient, store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    one, _, _, other, *_ = records_of(store, corpus_id)
    assert one.document_id != other.document_id
    more = Evidence(
        document_id=other.document_id, document_sha256=other.document_sha256, passage_id=other.passage_id,
        text=other.evidence, span=other.evidence_span,
    )  # fmt: skip
    bridging = one.model_copy(update={"more_evidence": [more], "strategy": "bridge"})
    dataset_id = put_dataset(store, corpus_id, [bridging]).dataset_id
    lineage = client.get(f"/v1/records/{bridging.record_id}/lineage", params={"dataset_id": dataset_id}).json()
    [further] = lineage["more_evidence"]
    assert further["evidence"] == {"span": more.span.model_dump(), "original": more.text, "verbatim": True}
    assert more.text in further["passage_text"]
    assert further["document"]["document_id"] == other.document_id


def test_datasets_from_before_the_newer_fields_are_still_read(client: TestClient, store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    records = records_of(store, corpus_id)
    manifest = put_dataset(store, corpus_id, records)
    known = json.loads(store.get(f"datasets/{manifest.dataset_id}/manifest.json"))
    for name in OLD_MANIFEST_LACKS:
        known.pop(name)
    store.put(f"datasets/{manifest.dataset_id}/manifest.json", json.dumps(known).encode())
    for key in manifest.records_keys.values():
        table, buffer = pq.read_table(io.BytesIO(store.get(key))), io.BytesIO()
        pq.write_table(table.drop_columns(OLD_RECORD_LACKS), buffer)
        store.put(key, buffer.getvalue())
    base = f"/v1/datasets/{manifest.dataset_id}"
    assert client.get(base).json()["records"] == manifest.records
    assert client.get(f"{base}/drops").json()["items"] == []
    assert len(client.get(f"{base}/review/records", params={"axis": "plain"}).json()["items"]) == len(records)
    found = StoredDatasets(store).record(manifest.dataset_id, records[0].record_id)
    assert (found.axis, found.more_evidence, found.copy_number) == ("plain", (), 0)


OLD_MANIFEST_LACKS = [
    "export_notes", "more_corpus_ids", "rows_made", "dropped_by_rule", "drops_key", "quality_key", "rungs",
    "hedged_calls", "budget_spent", "passages", "sources", "parent_dataset_id", "reviewers", "reviewed",
]  # fmt: skip
OLD_RECORD_LACKS = [
    "axis", "tools", "more_evidence", "rung", "source_dataset_id", "source_record_id", "copy_number", "edited_by",
]  # fmt: skip


def a_model(dataset_id: str) -> ModelManifest:
    training = TrainingSummary(
        steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
        tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    lineage = Lineage(
        run_id="run_1", dataset_id=dataset_id, corpus_id="cor_1", document_ids=[], base_model="m", base_sha256="0"
    )
    return ModelManifest(
        model_id=new_id("mdl"), name="m", prefix="models/m/", files={}, adapter_prefix="runs/r/", metrics_key="m",
        merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1), training=training, lineage=lineage,
    )  # fmt: skip
