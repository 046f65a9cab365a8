"""Exports hold what a record says, in the words of the readers they are for."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Span
from textmill_synth.export import PARQUET_SCHEMA, TEXT_FORMATS, ParquetFile

SPAN = Span(char_start=1, char_end=2, byte_start=3, byte_end=6)


def record(number: int = 0, system: bool = False, turns: int = 1, answer: str = "是，“对”。") -> Record:
    messages = [Message(role="system", content="S")] if system else []
    for turn in range(turns):
        messages += [Message(role="user", content=f"问 {number}.{turn}?"), Message(role="assistant", content=answer)]
    return Record(
        record_id=f"rec_{number:032x}", split="train", strategy="qa", language="zh", messages=messages,
        key_facts=["对"], question_id="q", way="ask-1", document_id="doc_1", document_sha256="00", passage_id="pas_1",
        evidence="对", evidence_span=SPAN,
    )  # fmt: skip


def write(path: Path, *records: Record) -> None:
    with ParquetFile(path) as file:
        for row in records:
            file.write(row)


def test_parquet_columns_are_a_records_fields_and_come_back_the_same(tmp_path: Path) -> None:
    assert PARQUET_SCHEMA.names == list(Record.model_fields)
    rows = [record(0), record(1, system=True, turns=2)]
    write(tmp_path / "r.parquet", *rows)
    assert [Record.model_validate(row) for row in pq.read_table(tmp_path / "r.parquet").to_pylist()] == rows


def test_parquet_is_written_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill_synth.export.ROWS_PER_GROUP", 3)
    write(tmp_path / "r.parquet", *(record(n) for n in range(7)))
    assert pq.ParquetFile(tmp_path / "r.parquet").num_row_groups == 3


def test_an_empty_split_keeps_its_columns(tmp_path: Path) -> None:
    write(tmp_path / "r.parquet")
    assert pq.read_table(tmp_path / "r.parquet").schema.names == list(Record.model_fields)


def test_parquet_opens_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "train.parquet", record(0), record(1))
    files = {"train": str(tmp_path / "train.parquet")}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert found["train"].column_names == list(Record.model_fields)
    assert found["train"][0]["messages"][1] == {"role": "assistant", "content": "是，“对”。"}


def test_jsonl_formats() -> None:
    row = record(system=True, turns=2)
    alpaca = json.loads(TEXT_FORMATS["alpaca"].line(row))
    assert alpaca == {
        "instruction": "问 0.1?", "input": "", "output": "是，“对”。", "system": "S",
        "history": [["问 0.0?", "是，“对”。"]],
    }  # fmt: skip
    sharegpt = json.loads(TEXT_FORMATS["sharegpt"].line(row))
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    chatml = json.loads(TEXT_FORMATS["chatml"].line(row))
    assert chatml["messages"][0] == {"role": "system", "content": "S"}


def test_csv_has_its_header_once_and_survives_quotes_and_line_breaks() -> None:
    awkward = 'He said "a, b".\nThen left.'
    fmt = TEXT_FORMATS["csv"]
    text = fmt.header + fmt.line(record(0)) + fmt.line(record(1, answer=awkward))
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["content", "summary"], ["问 0.0?", "是，“对”。"], ["问 1.0?", awkward]]


def test_every_line_is_one_line() -> None:
    for name in ("alpaca", "sharegpt", "chatml"):
        assert TEXT_FORMATS[name].line(record(answer="a\nb")).count("\n") == 1
