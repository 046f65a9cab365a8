"""Mixtures: shares and epochs come out as asked, every row is accounted for, nothing leaks, and the way back stays."""

import json
from collections import Counter

import pytest
from corpora import context
from datasets_made import put_dataset, put_texts, records_of

from textmill.contracts.base import new_id
from textmill.contracts.datasets import DatasetManifest, Record
from textmill.contracts.jobs import MixJob
from textmill.contracts.synthesis import MixSource
from textmill.errors import BadRequest, Conflict, JobFailed, NotFound
from textmill.store import MemoryStore, ObjectStore, S3Store
from textmill_synth.mixture import MixHandler
from textmill_synth.stored import StoredDatasets


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def mix(store: ObjectStore, *sources: MixSource, seed: int = 0, attempt: int = 1) -> DatasetManifest:
    output = MixHandler()(MixJob(sources=sources, seed=seed), context(store, attempt))
    manifest = DatasetManifest.model_validate(output.manifest)
    assert output.manifest_key == f"datasets/{manifest.dataset_id}/manifest.json"
    store.put(output.manifest_key, manifest.to_json())
    return manifest


def rows(store: ObjectStore, manifest: DatasetManifest, *splits: str) -> list[Record]:
    return list(StoredDatasets(store).stream(manifest.dataset_id, splits or ("train", "eval", "heldout")))  # type: ignore[arg-type]


def a_dataset(store: ObjectStore, corpus: int = 0, documents: int = 4, evaluated: tuple[int, ...] = ()) -> str:
    corpus_id = put_texts(store, documents, corpus)
    return put_dataset(store, corpus_id, records_of(store, corpus_id, evaluated)).dataset_id


def test_epochs_multiply_what_is_trained_on_and_nothing_else(store: MemoryStore) -> None:
    one, other = a_dataset(store, 0, evaluated=(3,)), a_dataset(store, 1)
    manifest = mix(store, MixSource(dataset_id=one, epochs=3), MixSource(dataset_id=other))
    assert manifest.records == {"train": 3 * 6 + 8, "eval": 2, "heldout": 3 + 4}
    found = rows(store, manifest)
    assert len({record.record_id for record in found}) == len(found)
    copies = Counter(record.copy_number for record in found if record.source_dataset_id == one)
    assert copies == {0: 6 + 2 + 3, 1: 6, 2: 6}
    assert manifest.counts.requested == manifest.counts.accepted == len(found)
    assert manifest.dropped_by_rule == {}
    assert (manifest.calls, manifest.calls_reused) == (0, 11 + 12)


def test_weights_take_a_share_and_account_for_the_rest(store: MemoryStore) -> None:
    one = a_dataset(store, documents=40)
    manifest = mix(store, MixSource(dataset_id=one, weight=0.25, epochs=4))
    [source] = manifest.sources
    assert source.rows == {"train": 80, "eval": 0, "heldout": 40}
    assert source.taken["train"] + source.left_out["weight"] == 4 * 80
    assert 50 <= source.taken["train"] <= 110
    assert source.taken["heldout"] + source.left_out.get("fact_not_trained", 0) == 40
    assert manifest.counts.requested == 4 * 80 + 40
    assert manifest.counts.rejected_by_reason == source.left_out
    trained = {record.passage_id for record in rows(store, manifest, "train")}
    assert {record.passage_id for record in rows(store, manifest, "heldout")} <= trained
    other_copies = {record.source_record_id for record in rows(store, manifest, "train") if record.copy_number == 1}
    assert other_copies != {r.source_record_id for r in rows(store, manifest, "train") if r.copy_number == 0}


def test_a_held_out_question_whose_fact_is_not_trained_on_is_left_out(store: MemoryStore) -> None:
    one = a_dataset(store, documents=40)
    manifest = mix(store, MixSource(dataset_id=one, weight=0.1))
    assert manifest.sources[0].left_out["fact_not_trained"] > 0
    trained = {record.passage_id for record in rows(store, manifest, "train")}
    assert {record.passage_id for record in rows(store, manifest, "heldout")} == trained


def test_the_same_job_takes_the_same_rows_and_another_seed_others(store: MemoryStore) -> None:
    source = MixSource(dataset_id=a_dataset(store, documents=20), weight=0.5)

    def taken(seed: int, attempt: int = 1) -> list[str | None]:
        return [record.source_record_id for record in rows(store, mix(store, source, seed=seed, attempt=attempt))]

    assert taken(0) == taken(0, attempt=2)
    assert set(taken(0)) != set(taken(1))


def test_a_document_on_both_sides_is_refused_by_name(store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    one = put_dataset(store, corpus_id, records_of(store, corpus_id, evaluated=(1,))).dataset_id
    other = put_dataset(store, corpus_id, records_of(store, corpus_id, evaluated=(2,))).dataset_id
    evaluated = next(r.document_id for r in StoredDatasets(store).stream(one, ("eval",)))
    with pytest.raises(JobFailed, match=f"{evaluated}.*{one}.*{other}"):
        mix(store, MixSource(dataset_id=one), MixSource(dataset_id=other))


def test_a_wording_that_another_source_holds_out_is_dropped_and_kept_in_the_ledger(store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    held = put_dataset(store, corpus_id, records_of(store, corpus_id, ways=2)).dataset_id
    trained = [
        r.model_copy(update={"split": "train"}) for r in records_of(store, corpus_id, ways=2) if r.split == "heldout"
    ]
    leaking = put_dataset(store, corpus_id, trained).dataset_id
    manifest = mix(store, MixSource(dataset_id=held), MixSource(dataset_id=leaking))
    assert manifest.dropped_by_rule == {"heldout_wording": 4}
    assert manifest.records == {"train": 8, "eval": 0, "heldout": 4}
    drops = StoredDatasets(store).drops(manifest.dataset_id, 0, 10)
    assert {drop.record.source_dataset_id for drop in drops} == {leaking}


def test_copies_of_a_row_that_goes_go_with_it(store: MemoryStore) -> None:
    corpus_id = put_texts(store)
    records = records_of(store, corpus_id)
    one, other = (put_dataset(store, corpus_id, records).dataset_id for _ in range(2))
    manifest = mix(store, MixSource(dataset_id=one, epochs=2), MixSource(dataset_id=other, epochs=3))
    assert manifest.records == {"train": 16, "eval": 0, "heldout": 4}
    assert manifest.dropped_by_rule == {"near_duplicate": 3 * 8 + 4}
    assert {record.source_dataset_id for record in rows(store, manifest)} == {one}


def test_a_mixture_of_a_mixture_keeps_its_copies_and_the_way_back(store: MemoryStore) -> None:
    one = a_dataset(store)
    inner = mix(store, MixSource(dataset_id=one, epochs=2))
    outer = mix(store, MixSource(dataset_id=inner.dataset_id, epochs=2))
    assert outer.records["train"] == 4 * 8
    record = rows(store, outer)[0]
    lineage = StoredDatasets(store).lineage(outer.dataset_id, record.record_id)
    assert [step.dataset_id for step in lineage.taken_from] == [inner.dataset_id, one]
    assert StoredDatasets(store).record(one, lineage.taken_from[-1].record_id).messages == record.messages
    assert lineage.evidence.verbatim


def test_corpora_are_all_named_and_sources_cannot_be_deleted(store: MemoryStore) -> None:
    one, other = a_dataset(store, 0), a_dataset(store, 1)
    manifest = mix(store, MixSource(dataset_id=one), MixSource(dataset_id=other))
    datasets = StoredDatasets(store)
    named = [manifest.corpus_id, *manifest.more_corpus_ids]
    assert named == [datasets.manifest(one).corpus_id, datasets.manifest(other).corpus_id]
    with pytest.raises(Conflict, match=manifest.dataset_id):
        datasets.delete(other)
    datasets.delete(manifest.dataset_id)
    datasets.delete(other)


def test_what_cannot_be_mixed_is_refused(store: MemoryStore) -> None:
    one = a_dataset(store)
    with pytest.raises(BadRequest, match="named twice"):
        mix(store, MixSource(dataset_id=one), MixSource(dataset_id=one))
    with pytest.raises(NotFound):
        mix(store, MixSource(dataset_id=new_id("ds")))
    with pytest.raises(JobFailed, match="no row is left"):
        mix(store, MixSource(dataset_id=one, weight=1e-9))


@pytest.mark.slow
def test_on_a_real_store(s3_store: S3Store) -> None:
    one, other = a_dataset(s3_store, 0, evaluated=(0,)), a_dataset(s3_store, 1)
    manifest = mix(s3_store, MixSource(dataset_id=one, epochs=2), MixSource(dataset_id=other, weight=0.5))
    found = rows(s3_store, manifest)
    assert len(found) == sum(manifest.records.values()) > 0
    assert b"mixed from" in s3_store.get(manifest.card_key)
    assert json.loads(s3_store.get(manifest.exports["croissant"]))["name"] == manifest.dataset_id
    assert StoredDatasets(s3_store).lineage(manifest.dataset_id, found[0].record_id).evidence.verbatim
