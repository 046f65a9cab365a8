"""Exports hold what a record says, in the words of the readers they are for, and say what they can't hold."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from textmill.contracts.datasets import Evidence, Message, Record, Tool, ToolCall
from textmill.contracts.documents import Span
from textmill_synth.export import NOTES_FILE, PARQUET_SCHEMA, TEXT_FORMATS, ParquetFile, TextExports

SPAN = Span(char_start=1, char_end=2, byte_start=3, byte_end=6)
LOOK_UP = Tool(
    name="look_up",
    description="找一卦",
    parameters='{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
)


def record(number: int = 0, system: bool = False, turns: int = 1, answer: str = "是，“对”。", **more: Any) -> Record:
    messages = [Message(role="system", content="S")] if system else []
    for turn in range(turns):
        messages += [Message(role="user", content=f"问 {number}.{turn}?"), Message(role="assistant", content=answer)]
    fields = {"messages": messages, **more}
    return Record(
        record_id=f"rec_{number:032x}", split="train", strategy="qa", language="zh",
        key_facts=["对"], question_id="q", way="ask-1", document_id="doc_1", document_sha256="00", passage_id="pas_1",
        evidence="对", evidence_span=SPAN, **fields,
    )  # fmt: skip


def tool_record(number: int = 9, names: Sequence[str] = ("师",)) -> Record:
    """A question, one call for each name, their results, and the answer."""
    calls = [
        ToolCall(id=f"call_{n}", name="look_up", arguments=json.dumps({"name": name}, ensure_ascii=False))
        for n, name in enumerate(names)
    ]
    results = [
        Message(role="tool", content=f"{name}：坤上坎下", tool_call_id=f"call_{n}") for n, name in enumerate(names)
    ]
    messages = [
        Message(role="system", content="S"),
        Message(role="user", content="师卦？"),
        Message(role="assistant", content="", tool_calls=calls),
        *results,
        Message(role="assistant", content="坤上坎下。"),
    ]
    return record(number, messages=messages, tools=[LOOK_UP])


def write(path: Path, *records: Record) -> None:
    with ParquetFile(path) as file:
        for row in records:
            file.write(row.to_json())


def same(row: Record) -> dict[str, Any]:
    """A record as JSON has it: Parquet brings lists back where the record had tuples."""
    return row.model_dump(mode="json")


def test_parquet_columns_are_a_records_fields_and_come_back_the_same(tmp_path: Path) -> None:
    assert PARQUET_SCHEMA.names == list(Record.model_fields)
    evidence = Evidence(document_id="doc_2", document_sha256="01", passage_id="pas_2", text="乙", span=SPAN)
    rows = [
        record(0),
        record(1, system=True, turns=2),
        tool_record(),
        record(2, more_evidence=[evidence], rung="split"),
    ]
    write(tmp_path / "r.parquet", *rows)
    found = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [same(Record.model_validate(row)) for row in found] == [same(row) for row in rows]


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
    write(tmp_path / "train.parquet", record(0), tool_record(1))
    files = {"train": str(tmp_path / "train.parquet")}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert found["train"].column_names == list(Record.model_fields)
    assert found["train"][0]["messages"][1]["content"] == "是，“对”。"
    assert found["train"][1]["messages"][2]["tool_calls"][0]["name"] == "look_up"


@pytest.mark.parametrize("name", list(TEXT_FORMATS))
def test_text_forms_open_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    with TextExports(tmp_path) as exports:
        for row in (record(0), record(1, system=True, turns=2), tool_record(2), record(3)):
            exports.write(row)
    path, kind = tmp_path / TEXT_FORMATS[name].file_name, "csv" if name == "csv" else "json"
    found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == exports.notes()[name].written


def test_jsonl_formats() -> None:
    row = record(system=True, turns=2)
    assert line("alpaca", row) == {
        "instruction": "问 0.1?", "input": "", "output": "是，“对”。", "system": "S",
        "history": [["问 0.0?", "是，“对”。"]],
    }  # fmt: skip
    sharegpt = line("sharegpt", row)
    assert [turn["from"] for turn in sharegpt["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    assert line("chatml", row)["messages"][0] == {"role": "system", "content": "S"}
    assert line("openai", row) == {"messages": line("chatml", row)["messages"]}
    assert line("chatglm3", row)["conversations"][:2] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "问 0.0?"},
    ]
    assert set(line("chatglm3", row)) == {"conversations"}, "tools are named only where there are any"


def test_chatglm3_holds_a_call_and_its_result_in_one_turn() -> None:
    found = line("chatglm3", tool_record(names=("师", "比")))
    assert found["tools"][0]["name"] == "look_up"
    assert found["tools"][0]["parameters"]["required"] == ["name"]
    assert [turn["role"] for turn in found["conversations"]] == ["system", "user", "tool", "tool", "assistant"]
    assert found["conversations"][3] == {
        "role": "tool", "name": "look_up", "parameters": {"name": "比"}, "observation": "比：坤上坎下",
    }  # fmt: skip
    spoken = tool_record().model_copy(
        update={"messages": [m.model_copy(update={"content": m.content or "看看。"}) for m in tool_record().messages]}
    )
    assert [t["role"] for t in line("chatglm3", spoken)["conversations"]][2:4] == ["assistant", "tool"]


def test_sharegpt_calls() -> None:
    found = line("sharegpt", tool_record())
    names = [turn["from"] for turn in found["conversations"]]
    assert names == ["system", "human", "function_call", "observation", "gpt"]
    assert json.loads(found["conversations"][2]["value"]) == {"name": "look_up", "arguments": {"name": "师"}}
    assert len(json.loads(line("sharegpt", tool_record(names=("师", "比")))["conversations"][2]["value"])) == 2
    assert json.loads(found["tools"])[0]["name"] == "look_up"


@pytest.mark.parametrize(
    "row", [record(), record(system=True, turns=3), tool_record(), tool_record(names=("师", "比"))]
)
def test_openai_lines_keep_the_rules_of_its_fine_tuning(row: Record) -> None:
    """The rules that OpenAI's guide and API description give for a line of supervised chat fine-tuning."""
    pydantic, chat = pytest.importorskip("pydantic"), pytest.importorskip("openai.types.chat")
    text = TEXT_FORMATS["openai"].line(row)
    assert text.count("\n") == 1
    found = json.loads(text)
    assert set(found) <= {"messages", "tools", "parallel_tool_calls"}
    roles = {"system", "user", "assistant", "tool"}
    assert {message["role"] for message in found["messages"]} <= roles
    for message in found["messages"]:
        kind = f"ChatCompletion{message['role'].capitalize()}MessageParam"
        typed = pydantic.TypeAdapter(getattr(chat, kind)).validate_python(message)
        assert set(typed) == set(message), "no key that the API doesn't know"
    assert found["messages"][-1]["role"] == "assistant"
    assert found["messages"][-1]["content"]
    asked: set[str] = set()
    for message in found["messages"]:
        if message["role"] == "tool":
            asked.remove(message["tool_call_id"])
        else:
            assert not asked, "each call is answered before anyone else speaks"
            asked |= {call["id"] for call in message.get("tool_calls", [])}
    assert not asked
    pydantic.TypeAdapter(list[chat.ChatCompletionFunctionToolParam]).validate_python(found.get("tools", []))
    called = {c["function"]["name"] for m in found["messages"] for c in m.get("tool_calls", [])}
    assert called <= {tool["function"]["name"] for tool in found.get("tools", [])}
    assert ("parallel_tool_calls" in found) == ("tools" in found)
    assert found.get("parallel_tool_calls", False) == any(len(m.get("tool_calls", [])) > 1 for m in found["messages"])
    assert all(json.loads(c["function"]["arguments"]) for m in found["messages"] for c in m.get("tool_calls", []))


def test_csv_has_its_header_once_and_survives_quotes_and_line_breaks() -> None:
    awkward = 'He said "a, b".\nThen left.'
    fmt = TEXT_FORMATS["csv"]
    text = fmt.header + fmt.line(record(0)) + fmt.line(record(1, answer=awkward))
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["content", "summary"], ["问 0.0?", "是，“对”。"], ["问 1.0?", awkward]]


def test_every_line_is_one_line() -> None:
    for name in set(TEXT_FORMATS) - {"csv"}:
        assert TEXT_FORMATS[name].line(record(answer="a\nb")).count("\n") == 1


def test_what_a_form_cannot_hold_is_left_out_counted_and_named(tmp_path: Path) -> None:
    unanswered = tool_record(4).model_copy(update={"messages": tool_record().messages[:3]})
    rows = [record(0), record(1, system=True), record(2, turns=2), tool_record(3), unanswered]
    with TextExports(tmp_path) as exports:
        for row in rows:
            exports.write(row)
    notes = exports.notes()
    assert notes["csv"].left_out == {"turns": 1, "tools": 2}
    assert notes["csv"].omitted == {"system": 1}, "of those written"
    assert notes["alpaca"].left_out == {"tools": 2}
    assert notes["chatglm3"].left_out == {"open_call": 1}
    assert notes["sharegpt"].left_out == notes["openai"].left_out == {}
    for name, note in notes.items():
        assert note.written + sum(note.left_out.values()) == len(rows)
        header = TEXT_FORMATS[name].header.count("\n")
        assert (tmp_path / TEXT_FORMATS[name].file_name).read_text("utf-8").count("\n") == note.written + header
    named = [json.loads(text) for text in (tmp_path / NOTES_FILE).read_text("utf-8").splitlines()]
    assert len(named) == sum(sum(note.left_out.values()) for note in notes.values())
    assert {n["record_id"] for n in named if n["export"] == "alpaca"} == {rows[3].record_id, rows[4].record_id}


def line(name: str, row: Record) -> Any:
    return json.loads(TEXT_FORMATS[name].line(row))
