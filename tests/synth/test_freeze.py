"""Frozen sets: what reviewers left, edits in, rejected rows out, every row accounted for, and nothing changes them."""

import csv
import io
import json

import pytest
from corpora import context
from datasets_made import a_reject, put_dataset, put_texts, records_of

from textmill.contracts.base import new_id
from textmill.contracts.datasets import DatasetManifest, Record
from textmill.contracts.jobs import FreezeJob, MixJob
from textmill.contracts.review import Approve, Changes, Edit, RecordFilter, RejectRecords, Undo
from textmill.contracts.synthesis import MixSource
from textmill.errors import Conflict, JobFailed, NotFound
from textmill.store import MemoryStore, ObjectStore, S3Store
from textmill_synth.freeze import FreezeHandler
from textmill_synth.mixture import MixHandler
from textmill_synth.review import ReviewLog, reject_id
from textmill_synth.reviewing import Reviews
from textmill_synth.stored import StoredDatasets


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def parent(store: MemoryStore) -> DatasetManifest:
    return a_dataset(store)


def a_dataset(store: ObjectStore) -> DatasetManifest:
    corpus_id = put_texts(store)
    rejects = [a_reject(store, corpus_id, passage) for passage in range(4)]
    return put_dataset(store, corpus_id, records_of(store, corpus_id, evaluated=(3,)), rejects)


def freeze(store: ObjectStore, reviewed: DatasetManifest, only_approved: bool = False) -> DatasetManifest:
    job = FreezeJob(reviewed_id=reviewed.dataset_id, only_approved=only_approved)
    output = FreezeHandler()(job, context(store))
    store.put(output.manifest_key, json.dumps(output.manifest).encode())
    return StoredDatasets(store).manifest(job.dataset_id)


def rows(store: ObjectStore, manifest: DatasetManifest, *splits: str) -> list[Record]:
    return list(StoredDatasets(store).stream(manifest.dataset_id, splits or ("train", "eval", "heldout")))  # type: ignore[arg-type]


def reviews(store: ObjectStore) -> Reviews:
    return Reviews(StoredDatasets(store), ReviewLog(store))


def edit(record_id: str, based_on: int = 0, override: bool = False, **changes: str) -> Edit:
    return Edit(
        action="edit",
        record_id=record_id,
        based_on=based_on,
        changes=Changes.model_validate(changes),
        override=override,
    )


def test_rejected_rows_are_out_edits_are_in_and_all_are_accounted_for(
    store: MemoryStore, parent: DatasetManifest
) -> None:
    train, review = rows(store, parent, "train"), reviews(store)
    review.decide(
        parent.dataset_id, "ann", RejectRecords(action="reject", record_ids=(train[0].record_id,), reason="x")
    )
    answer = train[1].answer.replace("has", "shows")
    review.decide(parent.dataset_id, "bo", edit(train[1].record_id, answer=answer))
    review.decide(parent.dataset_id, "bo", edit(train[2].record_id, answer="It was drawn in 1871.", override=True))
    frozen = freeze(store, parent)
    assert frozen.parent_dataset_id == parent.dataset_id
    assert frozen.reviewers == ["ann", "bo"]
    assert frozen.counts.requested == 11 == frozen.counts.accepted + frozen.counts.rejected
    assert frozen.counts.rejected_by_reason == {"review_rejected": 1}
    assert frozen.reviewed is not None
    assert (frozen.reviewed.decisions, frozen.reviewed.edited, frozen.reviewed.overrides) == (3, 2, 1)
    found = {record.source_record_id: record for record in rows(store, frozen)}
    assert train[0].record_id not in found
    new = found[train[1].record_id]
    assert (new.answer, new.edited_by) == (answer, "bo")
    assert new.record_id != train[1].record_id, "what says something else is another record"
    kept = {"split", "passage_id", "evidence", "evidence_span", "prompt_version", "model", "call_id", "key_facts"}
    assert new.model_dump(include=kept) == train[1].model_dump(include=kept)
    same = found[train[3].record_id]
    assert (same.record_id, same.messages, same.edited_by) == (train[3].record_id, train[3].messages, None)
    assert StoredDatasets(store).lineage(frozen.dataset_id, new.record_id).evidence.verbatim
    exported = list(csv.reader(io.StringIO(store.get(frozen.exports["csv"]).decode())))
    assert [answer] == [row[1] for row in exported if "shows" in row[1]]


def test_only_approved_rows_when_so_asked(store: MemoryStore, parent: DatasetManifest) -> None:
    review = reviews(store)
    with pytest.raises(JobFailed, match="not_approved"):
        freeze(store, parent, only_approved=True)
    review.decide(parent.dataset_id, "ann", Approve(action="approve", filter=RecordFilter(strategy="qa")))
    approved = rows(store, parent, "train")
    review.decide(parent.dataset_id, "ann", edit(approved[0].record_id, system="Be brief."))
    frozen = freeze(store, parent, only_approved=True)
    kept = {record.source_record_id for record in rows(store, frozen)}
    assert approved[0].record_id not in kept, "edited after it was approved"
    assert {record.strategy for record in rows(store, frozen)} == {"qa"}
    assert frozen.counts.rejected_by_reason["not_approved"] > 0


def test_an_undone_decision_has_no_effect(store: MemoryStore, parent: DatasetManifest) -> None:
    review = reviews(store)
    review.decide(
        parent.dataset_id, "ann", RejectRecords(action="reject", filter=RecordFilter(split="train"), reason="x")
    )
    review.decide(parent.dataset_id, "ann", Undo(action="undo"))
    assert freeze(store, parent).records == parent.records


def test_held_out_questions_go_with_their_fact(store: MemoryStore, parent: DatasetManifest) -> None:
    gone = rows(store, parent, "train")[0].passage_id
    ids = tuple(record.record_id for record in rows(store, parent, "train") if record.passage_id == gone)
    reviews(store).decide(parent.dataset_id, "ann", RejectRecords(action="reject", record_ids=ids, reason="x"))
    frozen = freeze(store, parent)
    assert frozen.counts.rejected_by_reason == {"review_rejected": 2, "fact_not_trained": 1}
    assert gone not in {record.passage_id for record in rows(store, frozen, "heldout")}


def test_what_synth_rejected_comes_in_on_the_side_of_its_document(store: MemoryStore, parent: DatasetManifest) -> None:
    review, question = reviews(store), "What does it stand for?"
    passages = [reject.passage_id for _, reject in StoredDatasets(store).reject_rows(parent.dataset_id)]
    texts = {r.passage_id: r.evidence.split()[3].lower() for r in rows(store, parent)}
    for row, asked in ((0, question), (1, "What is it a sign of?"), (3, "Who is it?")):
        answer = f"It stands for a leader who waits near the {texts[passages[row]]}."
        review.decide(parent.dataset_id, "bo", edit(reject_id(row), question=asked, answer=answer))
    review.decide(parent.dataset_id, "bo", RejectRecords(action="reject", record_ids=(reject_id(1),), reason="x"))
    frozen = freeze(store, parent)
    taken_up = {r.source_record_id: r for r in rows(store, frozen) if (r.source_record_id or "").startswith("rej_")}
    assert set(taken_up) == {reject_id(0), reject_id(3)}
    assert taken_up[reject_id(0)].split == "train"
    assert taken_up[reject_id(3)].split == "eval", "its document is evaluated"
    record = taken_up[reject_id(0)]
    assert (record.edited_by, record.call_id, record.prompt_version) == ("bo", "call_1", "qa.en-1")
    assert record.evidence == f"It stands for a leader who waits near the {texts[passages[0]]}."
    assert StoredDatasets(store).lineage(frozen.dataset_id, record.record_id).evidence.verbatim
    assert frozen.reviewed is not None
    assert frozen.reviewed.promoted == 2
    assert frozen.counts.requested == 11 + 3


def test_an_edit_into_a_held_out_wording_is_dropped_with_its_reason(
    store: MemoryStore, parent: DatasetManifest
) -> None:
    heldout = rows(store, parent, "heldout")[0]
    twin = next(r for r in rows(store, parent, "train") if r.passage_id == heldout.passage_id)
    reviews(store).decide(parent.dataset_id, "ann", edit(twin.record_id, question=heldout.question))
    frozen = freeze(store, parent)
    assert frozen.dropped_by_rule == {"heldout_wording": 1}
    [drop] = StoredDatasets(store).drops(frozen.dataset_id, 0, 10)
    assert (drop.record.source_record_id, drop.record.edited_by) == (twin.record_id, "ann")


def test_a_frozen_set_stays_as_it_is_and_keeps_its_parent(store: MemoryStore, parent: DatasetManifest) -> None:
    frozen, review = freeze(store, parent), reviews(store)
    before = store.get(frozen.records_keys["train"])
    review.decide(parent.dataset_id, "ann", RejectRecords(action="reject", filter=RecordFilter(), reason="x"))
    assert store.get(frozen.records_keys["train"]) == before
    with pytest.raises(Conflict, match=frozen.dataset_id):
        StoredDatasets(store).delete(parent.dataset_id)
    StoredDatasets(store).delete(frozen.dataset_id)
    StoredDatasets(store).delete(parent.dataset_id)
    assert list(store.list("reviews/")) == []
    with pytest.raises(NotFound):
        freeze(store, parent)


def test_a_frozen_mixture_keeps_its_copies(store: MemoryStore, parent: DatasetManifest) -> None:
    job = MixJob(sources=(MixSource(dataset_id=parent.dataset_id, epochs=3),))
    output = MixHandler()(job, context(store))
    store.put(output.manifest_key, json.dumps(output.manifest).encode())
    mixture = StoredDatasets(store).manifest(job.dataset_id)
    record, *others = rows(store, mixture, "train")
    copy = next(other for other in others if other.source_record_id == record.source_record_id)
    for one in (record, copy):
        reviews(store).decide(mixture.dataset_id, "ann", edit(one.record_id, system="Be brief."))
    frozen = freeze(store, mixture)
    assert (
        "csv can't hold all: 18 written, left out none, written without {'system': 2}"
        in store.get(frozen.card_key).decode()
    )
    assert len({row.record_id for row in rows(store, frozen)}) == len(rows(store, mixture))
    assert frozen.records == mixture.records == {"train": 18, "eval": 2, "heldout": 3}
    lineage = StoredDatasets(store).lineage(frozen.dataset_id, rows(store, frozen, "train")[0].record_id)
    assert [step.dataset_id for step in lineage.taken_from] == [mixture.dataset_id, parent.dataset_id]


def test_an_unknown_dataset_is_not_frozen(store: MemoryStore) -> None:
    with pytest.raises(NotFound):
        FreezeHandler()(FreezeJob(reviewed_id=new_id("ds")), context(store))


@pytest.mark.slow
def test_on_a_real_store(s3_store: S3Store) -> None:
    parent = a_dataset(s3_store)
    train, review = rows(s3_store, parent, "train"), reviews(s3_store)
    review.decide(
        parent.dataset_id, "ann", RejectRecords(action="reject", record_ids=(train[0].record_id,), reason="x")
    )
    review.decide(parent.dataset_id, "ann", edit(train[1].record_id, system="Be brief."))
    frozen = freeze(s3_store, parent)
    assert frozen.records == {**parent.records, "train": 5}
    assert b"The reviewed version of" in s3_store.get(frozen.card_key)
    assert [r.edited_by for r in rows(s3_store, frozen, "train")].count("ann") == 1
