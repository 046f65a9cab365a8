"""The dataset card tells what was dropped, how responses became usable, and what stands out."""

from pathlib import Path

import yaml
from made_records import made_record

from textmill.contracts.datasets import AxisCoverage, BudgetSpent, Cost, Counts, DatasetManifest, RungYield
from textmill.contracts.synthesis import QualityOptions
from textmill.store import MemoryStore
from textmill_synth.card import put_card
from textmill_synth.row_writer import RowWriter

ROWS = [
    made_record("When was the lighthouse | of Fern Island built?", "It was built\nin 1821.", "fern"),
    made_record("So when was the lighthouse | of Fern Island built?", "It was built\nin 1821.", "copy"),
    made_record("石岛灯塔归谁管？", "归陈大海管，电话13800138000。", "石岛"),
]


def card(folder: Path, **changes: object) -> str:
    store = MemoryStore()
    with RowWriter(store, folder, QualityOptions(), 0) as rows:
        for record in ROWS:
            rows.add(record)
        written = rows.publish("x/", lambda: None)
    manifest = DatasetManifest(
        dataset_id="ds_1",
        corpus_id="cor_1",
        records=written.records,
        counts=Counts(requested=3, accepted=2, rejected=1, rejected_by_reason={"truncated": 1}),
        counts_by_strategy={"qa": Counts(requested=2, accepted=2)},
        cost=Cost(),
        calls=3,
        calls_reused=0,
        records_keys=written.records_keys,
        rejects_key="x/rejects.jsonl",
        card_key="x/README.md",
        exports=written.exports,
        document_ids=written.document_ids,
        prompt_versions=["pv_1"],
        models=["m"],
        rows_made=written.rows_made,
        dropped_by_rule=written.dropped_by_rule,
        passages=7,
    ).model_copy(update=changes)
    put_card(store, manifest, written.quality, written.examples, {"pv_1": "prompts/pv_1.j2"}, 4)
    return store.get("x/README.md").decode()


def test_what_was_dropped_and_what_stands_out(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "| written | 2 |\n| dropped: near_duplicate | 1 |\n| made | 3 |" in text
    assert '"accepted" below even when all its rows were dropped' in text
    assert "- **Rows that hold what looks like personal data, and stay in the dataset: 1.**" in text
    assert "mobile in 1." in text
    assert "| language en | 1 | 50 % |" in text
    assert "Of 7 passages, 4 matched no question set" in text
    assert "13800138000" not in text
    assert "| pv_1 | prompts/pv_1.j2 |" in text


def test_the_head_is_yaml_and_a_cell_stays_a_cell(tmp_path: Path) -> None:
    _, head, body = card(tmp_path).split("---\n", 2)
    assert yaml.safe_load(head)["language"] == ["en", "zh"]
    assert yaml.safe_load(head)["size_categories"] == ["n<1K"]
    assert "| When was the lighthouse \\| of Fern Island built? | It was built in 1821. |" in body


def test_what_only_some_datasets_have(tmp_path: Path) -> None:
    plain = card(tmp_path)
    for part in (
        "How responses became usable",
        "Ways of asking that were wanted",
        "ended the generation",
        "made twice",
    ):
        assert part not in plain
    text = card(
        tmp_path,
        rungs={"as_asked": RungYield(tried=4, gained=3, accepted=5), "partial": RungYield(tried=1)},
        coverage={"typo": AxisCoverage(wanted=5, filled=3, missing={"echo": 1, "name_lost": 1})},
        budget_spent=BudgetSpent(refused=9, ended_by="max_calls"),
        hedged_calls=2,
        left_out=6,
        answer_form="json_schema",
    )
    assert "| as_asked | 4 | 3 | 75 % | 5 |\n| partial | 1 | 0 | 0 % | 0 |" in text
    assert "| typo | 5 | 3 | echo 1, name_lost 1 |" in text
    assert "The budget's `max_calls` ended the generation: 9 calls were not made." in text
    assert "2 calls were made twice" in text
    assert "6 answers were not asked for" in text
    assert "asked for as `json_schema`" in text
