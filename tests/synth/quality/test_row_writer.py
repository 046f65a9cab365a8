"""Rows go in, and each is written or lies in the drop ledger with its reason: nothing is gone."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from made_records import made_record
from pydantic import ValidationError

from textmill.contracts.datasets import Cost, Counts, DatasetManifest, Record, Split
from textmill.contracts.quality import Drop, QualityReport, RowFinding
from textmill.contracts.synthesis import QualityOptions
from textmill.errors import Cancelled
from textmill.store import MemoryStore
from textmill_synth.quality.screen import Verdict
from textmill_synth.row_writer import RowWriter, WrittenRows

PREFIX = "datasets/ds_1/attempt-1/"


def write(store: MemoryStore, folder: Path, records: Sequence[Record], seed: int = 0, **options: Any) -> WrittenRows:
    with RowWriter(store, folder, QualityOptions(**options), seed) as rows:
        for record in records:
            rows.add(record)
        return rows.publish(PREFIX, lambda: None)


def drops(store: MemoryStore, written: WrittenRows) -> list[Drop]:
    return [Drop.model_validate_json(line) for line in store.get(written.drops_key).splitlines()]


def findings(store: MemoryStore, written: WrittenRows) -> list[RowFinding]:
    return [RowFinding.model_validate_json(line) for line in store.get(written.quality.findings_key).splitlines()]


def kept(store: MemoryStore, written: WrittenRows, split: Split) -> list[Record]:
    table = pq.read_table(io.BytesIO(store.get(written.records_keys[split])))
    return [Record.model_validate(row) for row in table.to_pylist()]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


BUILT = made_record("When was the lighthouse of Fern Island built?", "It was built in 1821.", "fern")
AGAIN = made_record("So when was the lighthouse of Fern Island built?", "It was built in 1821.", "copy")
OTHER = made_record("When was the lighthouse of Gull Island built?", "It was built in 1832.", "gull")
CALL = made_record("风岛码头归谁管？", "归陈大海管，电话13800138000。", "风岛")
REFUSED = made_record("石岛灯塔有多高？", "抱歉，我无法回答这个问题。", "石岛", evidence="石岛灯塔高四十米。")


def test_a_near_duplicate_goes_to_the_ledger_whole(store: MemoryStore, tmp_path: Path) -> None:
    written = write(store, tmp_path, [BUILT, AGAIN, OTHER])
    assert (written.rows_made, written.records) == (3, {"train": 2, "eval": 0, "heldout": 0})
    assert written.dropped_by_rule == {"near_duplicate": 1}
    [drop] = drops(store, written)
    assert (drop.record, drop.against, drop.threshold) == (AGAIN, BUILT.record_id, 0.9)
    assert drop.text == "So when was the lighthouse of Fern Island built?\nIt was built in 1821."
    assert 0.9 <= drop.value < 1


def test_training_rows_that_give_the_evaluation_away_go_and_never_evaluation_rows(
    store: MemoryStore, tmp_path: Path
) -> None:
    asked = BUILT.model_copy(update={"split": "eval"})
    written = write(store, tmp_path, [AGAIN, OTHER, asked])
    assert [drop.rule for drop in drops(store, written)] == ["contamination"]
    assert kept(store, written, "eval") == [asked]
    assert kept(store, written, "train") == [OTHER]


def test_training_rows_in_the_wording_of_held_out_ones_go(store: MemoryStore, tmp_path: Path) -> None:
    fact = made_record("Fern Island lighthouse year of building?", "It was built in 1821.", "fern")
    held_out = BUILT.model_copy(update={"split": "heldout"})
    written = write(store, tmp_path, [fact, AGAIN, held_out])
    [drop] = drops(store, written)
    assert (drop.rule, drop.record, drop.against) == ("heldout_wording", AGAIN, held_out.record_id)
    assert kept(store, written, "train") == [fact], "the same fact in other words is what heldout is for"


def test_at_a_threshold_of_one_only_equal_wordings_go(store: MemoryStore, tmp_path: Path) -> None:
    asked = BUILT.model_copy(update={"split": "eval"})
    equal = made_record("when was the Lighthouse of Fern Island built", "In 1821.", "copy")
    written = write(store, tmp_path, [AGAIN, equal, asked], near_duplicate=1.0, contamination=1.0)
    assert [drop.record for drop in drops(store, written)] == [equal]


def test_personal_data_is_told_by_record_and_dropped_if_asked(store: MemoryStore, tmp_path: Path) -> None:
    written = write(store, tmp_path, [BUILT, CALL])
    [finding] = findings(store, written)
    assert (finding.record_id, finding.finding, finding.pii) == (CALL.record_id, "pii", ["mobile"])
    report = store.get(written.quality_key).decode()
    assert QualityReport.model_validate_json(report).pii == {"mobile": 1}
    assert "13800138000" not in report + store.get(written.quality.findings_key).decode()
    assert [record.record_id for record in written.examples] == [BUILT.record_id]
    written = write(store, tmp_path, [BUILT, CALL], drop_pii=True)
    assert written.dropped_by_rule == {"pii": 1}
    assert drops(store, written)[0].record == CALL


def test_conflicts_and_refusals_stay_and_are_told(store: MemoryStore, tmp_path: Path) -> None:
    conflict = made_record("So when was the lighthouse of Fern Island built?", "It was built in 1846.", "other")
    written = write(store, tmp_path, [BUILT, conflict, REFUSED])
    assert written.records["train"] == 3
    told = {finding.record_id: finding for finding in findings(store, written)}
    assert told[conflict.record_id].against == BUILT.record_id
    assert told[REFUSED.record_id].finding == "refusal"
    assert len(written.quality.warnings) == 2


def test_copies_stay_or_go_with_the_row_they_are_copies_of(store: MemoryStore, tmp_path: Path) -> None:
    with RowWriter(store, tmp_path, QualityOptions(), 0) as rows:
        for record in (BUILT, AGAIN):
            first = rows.add(record)
            for epoch in (1, 2):
                rows.add(record.model_copy(update={"copy_number": epoch}), copy_of=first)
        written = rows.publish(PREFIX, lambda: None)
    assert written.dropped_by_rule == {"near_duplicate": 3}
    assert [record.copy_number for record in kept(store, written, "train")].count(0) == 1
    assert {record.question for record in kept(store, written, "train")} == {BUILT.question}


def test_rows_dropped_before_are_counted_and_kept_in_the_ledger(store: MemoryStore, tmp_path: Path) -> None:
    with RowWriter(store, tmp_path, QualityOptions(), 0) as rows:
        rows.add(BUILT)
        rows.drop(AGAIN, Verdict("name_lost", 0.4, 0.5))
        written = rows.publish(PREFIX, lambda: None)
    assert (written.rows_made, written.dropped_by_rule) == (2, {"name_lost": 1})
    assert drops(store, written)[0].record == AGAIN


def test_the_same_rows_give_the_same_bytes(store: MemoryStore, tmp_path: Path) -> None:
    records = [BUILT, OTHER, CALL, REFUSED]
    first = write(store, tmp_path, records)
    data = store.get(first.records_keys["train"])
    again = write(store, tmp_path, records[::-1])
    assert store.get(again.records_keys["train"]) == data, "the order in which rows come is not that of training"
    write(store, tmp_path, records, seed=1)
    assert store.get(first.records_keys["train"]) != data


def test_exports_hold_what_is_left_to_train_on(store: MemoryStore, tmp_path: Path) -> None:
    written = write(store, tmp_path, [BUILT, AGAIN, OTHER.model_copy(update={"split": "heldout"})])
    [line] = store.get(written.exports["chatml"]).splitlines()
    assert json.loads(line)["messages"][0]["content"] == BUILT.question


def test_publishing_stops_when_told(store: MemoryStore, tmp_path: Path) -> None:
    def stop() -> None:
        raise Cancelled("planted")

    with RowWriter(store, tmp_path, QualityOptions(), 0) as rows:
        rows.add(BUILT)
        with pytest.raises(Cancelled):
            rows.publish(PREFIX, stop)
    assert list(store.list("")) == []


QUESTIONS = st.sampled_from(
    [
        "When was the lighthouse of {} built?",
        "So when was the lighthouse of {} built?",
        "Who built {}?",
        "{}的灯塔建于哪一年？",
        "{}的灯塔建于哪一年呢？",
    ]
)
NAMES = st.sampled_from(["Fern Island", "Gull Island", "石岛", "风岛"])
ANSWERS = st.sampled_from(["It was built in 1821.", "建于1821年。", "Call 13800138000.", "I cannot answer this."])
SPLITS = st.sampled_from(["train", "train", "train", "eval", "heldout"])
ROWS = st.lists(st.tuples(QUESTIONS, NAMES, ANSWERS, SPLITS, st.booleans()), max_size=30)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, drop_pii=st.booleans(), threshold=st.sampled_from([0.5, 0.9, 1.0]))
def test_rows_made_are_written_or_dropped(
    tmp_path: Path, rows: list[tuple[str, str, str, str, bool]], drop_pii: bool, threshold: float
) -> None:
    store, made = MemoryStore(), list[Record]()
    quality = QualityOptions(near_duplicate=threshold, contamination=threshold, drop_pii=drop_pii)
    with RowWriter(store, tmp_path, quality, 0) as writer:
        for number, (question, name, answer, split, stays) in enumerate(rows):
            record = made_record(question.format(name), answer, f"d{number % 7}", split=split, way=f"w{number}")
            made.append(record)
            writer.add(record) if stays else writer.drop(record, Verdict("planted", 1, 1))
        written = writer.publish(PREFIX, lambda: None)
    there = [r.record_id for split in written.records for r in kept(store, written, split)]
    gone = drops(store, written)
    assert Counter(r.record_id for r in made) == Counter(there) + Counter(drop.record_id for drop in gone)
    assert written.rows_made == len(made) == sum(written.records.values()) + sum(written.dropped_by_rule.values())
    assert Counter(drop.rule for drop in gone) == written.dropped_by_rule
    assert all(drop.split == "train" for drop in gone if drop.rule in ("contamination", "heldout_wording"))
    assert all(drop.value >= drop.threshold for drop in gone)


def test_a_manifest_that_lost_a_row_is_refused() -> None:
    fields: dict[str, Any] = {
        **dict.fromkeys(("dataset_id", "corpus_id", "rejects_key", "card_key"), "x"),
        **{name: {} for name in ("counts_by_strategy", "records_keys", "exports")},
        **dict.fromkeys(("document_ids", "prompt_versions", "models"), ()),
        "records": {"train": 5, "eval": 1, "heldout": 0},
        "counts": Counts(),
        "cost": Cost(),
        "calls": 0,
        "calls_reused": 0,
    }
    assert DatasetManifest(**fields).rows_made is None
    assert DatasetManifest(**fields, rows_made=8, dropped_by_rule={"pii": 2}).rows_made == 8
    with pytest.raises(ValidationError, match="9 rows were made"):
        DatasetManifest(**fields, rows_made=9, dropped_by_rule={"pii": 2})
