"""The forms in which a dataset leaves: Parquet with every field of a record, and what other trainers read.

Each text format is one function from a record to one line. What a format can't hold is never bent or left away in
silence: such a record is left out of that file, counted, and named in ``export-notes.jsonl``. Knows nothing of stores
or jobs.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from pydantic import JsonValue

from textmill.contracts.datasets import Evidence, ExportNote, Message, Record, Tool, ToolCall

ROWS_PER_GROUP = 1_000
NOTES_FILE = "export-notes.jsonl"
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_SPAN = pa.struct([(name, pa.int64()) for name in ("char_start", "char_end", "byte_start", "byte_end")])
_COST = pa.struct([(name, pa.int64()) for name in ("prompt_tokens", "completion_tokens")])
_CALLS = pa.list_(pa.struct([(name, pa.string()) for name in ToolCall.model_fields]))
_MESSAGE = {"role": pa.string(), "content": pa.string(), "tool_calls": _CALLS, "tool_call_id": pa.string()}
_EVIDENCE = {name: _SPAN if name == "span" else pa.string() for name in Evidence.model_fields}
_TYPES: Mapping[str, pa.DataType] = {
    "schema_version": pa.int32(),
    "messages": pa.list_(pa.struct(list(_MESSAGE.items()))),
    "tools": pa.list_(pa.struct([(name, pa.string()) for name in Tool.model_fields])),
    "more_evidence": pa.list_(pa.struct(list(_EVIDENCE.items()))),
    "copy_number": pa.int32(),
    "key_facts": pa.list_(pa.string()),
    "evidence_span": _SPAN,
    "cost": _COST,
}
PARQUET_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Record.model_fields])
"""The columns are a record's fields, in their order."""

Part = Literal["system", "tools", "turns", "spoken_call", "open_call", "order"]
"""What a record may have and a format may have no place for: a system message; tools or calls of tools; more than one
question; an assistant that speaks and calls in one message; a call without its result; turns that don't alternate."""


@dataclass(frozen=True)
class TextFormat:
    """``header`` is written once, before the first line. Lines carry their own line break.

    A record with a part in ``refuses`` has no line in this format. One with a part in ``omits`` has a line without it.
    """

    file_name: str
    media_type: str
    line: Callable[[Record], str]
    header: str = ""
    refuses: frozenset[Part] = frozenset()
    omits: frozenset[Part] = frozenset()


def parts(record: Record) -> list[Part]:
    """Which of the parts that not every format can hold this record has, the most telling first."""
    turns = _turns(record)
    calls = [call for message in turns for call in message.tool_calls]
    has: dict[Part, bool] = {
        "system": len(turns) < len(record.messages),
        "tools": bool(record.tools or calls or any(message.role == "tool" for message in turns)),
        "turns": sum(message.role == "user" for message in turns) > 1,
        "spoken_call": any(message.tool_calls and message.content for message in turns),
        "open_call": {call.id for call in calls} != {m.tool_call_id for m in turns if m.role == "tool"},
        "order": [m.role for m in turns] != ["user", "assistant"] * (len(turns) // 2),
    }
    return [part for part, is_there in has.items() if is_there]


def _alpaca(record: Record) -> str:
    *history, user, reply = _turns(record)
    row: dict[str, JsonValue] = {"instruction": user.content, "input": "", "output": reply.content}
    if system := _system(record):
        row["system"] = system
    if history:
        row["history"] = [[q.content, a.content] for q, a in zip(history[::2], history[1::2], strict=True)]
    return _json_line(row)


def _sharegpt(record: Record) -> str:
    """Calls and their results are the turns ``function_call`` and ``observation``; ``tools`` is JSON in a string."""
    row: dict[str, JsonValue] = {"conversations": [_sharegpt_turn(message) for message in record.messages]}
    if record.tools:
        row["tools"] = json.dumps([_function(tool) for tool in record.tools], ensure_ascii=False)
    return _json_line(row)


def _sharegpt_turn(message: Message) -> JsonValue:
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in message.tool_calls]
        return {
            "from": "function_call",
            "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False),
        }
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
    return {"from": names[message.role], "value": message.content}


def _chatml(record: Record) -> str:
    row: dict[str, JsonValue] = {"messages": [message.openai() for message in record.messages]}
    if record.tools:
        row["tools"] = _openai_tools(record)
    return _json_line(row)


def _openai(record: Record) -> str:
    """A line of OpenAI's chat fine-tuning: ``FineTuneChatRequestInput`` in its API's description."""
    row: dict[str, JsonValue] = {"messages": [message.openai() for message in record.messages]}
    if record.tools:
        row["tools"] = _openai_tools(record)
        row["parallel_tool_calls"] = any(len(message.tool_calls) > 1 for message in record.messages)
    return _json_line(row)


def _openai_tools(record: Record) -> JsonValue:
    return [{"type": "function", "function": _function(tool)} for tool in record.tools]


def _chatglm3(record: Record) -> str:
    """ChatGLM3's own fine-tuning form: the role ``tool`` holds a call and its result in one turn."""
    row: dict[str, JsonValue] = {"tools": [_function(tool) for tool in record.tools]} if record.tools else {}
    results = {m.tool_call_id: m.content for m in record.messages if m.role == "tool"}
    turns: list[JsonValue] = [{"role": "system", "content": _system(record)}] if _system(record) else []
    for message in _turns(record):
        if message.role != "tool" and (message.content or not message.tool_calls):
            turns.append({"role": message.role, "content": message.content})
        turns += [_chatglm3_call(call, results[call.id]) for call in message.tool_calls]
    return _json_line({**row, "conversations": turns})


def _chatglm3_call(call: ToolCall, result: str) -> JsonValue:
    return {"role": "tool", "name": call.name, "parameters": json.loads(call.arguments), "observation": result}


def _csv(record: Record) -> str:
    return csv_line([record.question, record.answer])


def csv_line(values: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


_ALPACA_REFUSES: frozenset[Part] = frozenset({"tools", "order"})
_CSV_REFUSES: frozenset[Part] = frozenset({"tools", "order", "turns"})
_LINES = "application/jsonl"
TEXT_FORMATS: Mapping[str, TextFormat] = {
    "alpaca": TextFormat("alpaca.jsonl", _LINES, _alpaca, refuses=_ALPACA_REFUSES),
    "sharegpt": TextFormat("sharegpt.jsonl", _LINES, _sharegpt, refuses=frozenset({"spoken_call"})),
    "chatml": TextFormat("chatml.jsonl", _LINES, _chatml),
    # ChatGLM3's loader goes by the ending: JSON lines must be called .json.
    "chatglm3": TextFormat("chatglm3.json", _LINES, _chatglm3, refuses=frozenset({"open_call"})),
    "openai": TextFormat("openai.jsonl", _LINES, _openai),
    "csv": TextFormat(
        "content-summary.csv",
        "text/csv",
        _csv,
        header=csv_line(["content", "summary"]),
        refuses=_CSV_REFUSES,
        omits=frozenset({"system"}),
    ),
}
EXPORT_MEDIA_TYPES: Mapping[str, str] = {
    **{name: fmt.media_type for name, fmt in TEXT_FORMATS.items()},
    "notes": _LINES,
    "parquet": "application/vnd.apache.parquet",
    "croissant": "application/ld+json",
}


class TextExports:
    """Writes records in all text formats at once, into ``folder``. A context manager; leaving it closes the files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._written: Counter[str] = Counter()
        self._left_out: dict[str, Counter[str]] = {name: Counter() for name in TEXT_FORMATS}
        self._omitted: dict[str, Counter[str]] = {name: Counter() for name in TEXT_FORMATS}

    def __enter__(self) -> "TextExports":
        names = {name: fmt.file_name for name, fmt in TEXT_FORMATS.items()}
        self._files = {
            name: self._open.enter_context((self._folder / file_name).open("w", encoding="utf-8", newline=""))
            for name, file_name in {**names, "notes": NOTES_FILE}.items()
        }
        for name, fmt in TEXT_FORMATS.items():
            self._files[name].write(fmt.header)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def write(self, record: Record) -> None:
        """One line in each format that can hold the record, one note for each that can't."""
        has = parts(record)
        for name, fmt in TEXT_FORMATS.items():
            refused = [part for part in has if part in fmt.refuses]
            if refused:
                self._left_out[name].update(refused[:1])
                note: dict[str, JsonValue] = {"export": name, "record_id": record.record_id, "cannot_hold": [*refused]}
                self._files["notes"].write(_json_line(note))
            else:
                self._files[name].write(fmt.line(record))
                self._written[name] += 1
                self._omitted[name].update(part for part in has if part in fmt.omits)

    def notes(self) -> dict[str, ExportNote]:
        """By format: records written + records left out = records given, each left out for one reason."""
        return {
            name: ExportNote(
                written=self._written[name], left_out=dict(self._left_out[name]), omitted=dict(self._omitted[name])
            )
            for name in TEXT_FORMATS
        }

    def file_names(self) -> Iterator[tuple[str, str]]:
        """Pairs of export name and file name."""
        yield from ((name, fmt.file_name) for name, fmt in TEXT_FORMATS.items())
        yield "notes", NOTES_FILE


class ParquetFile:
    """Writes records as Parquet, ``ROWS_PER_GROUP`` in memory at a time. A context manager; leaving it closes."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, PARQUET_SCHEMA, compression="zstd")
        self._lines: list[bytes] = []

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush()
        self._writer.close()

    def write(self, line: bytes) -> None:
        """A record as its ``to_json`` gives it: Arrow reads that at a thirtieth of what a row of fields costs."""
        self._lines.append(line)
        if len(self._lines) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            self._writer.write_table(_table(b"\n".join(self._lines)))
            self._lines = []


def _table(lines: bytes) -> pa.Table:
    """In one block: a line that is longer than a block can't be read."""
    reading = pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parsing = pa_json.ParseOptions(explicit_schema=PARQUET_SCHEMA, unexpected_field_behavior="error")
    return pa_json.read_json(io.BytesIO(lines), reading, parsing)


def _turns(record: Record) -> list[Message]:
    return [message for message in record.messages if message.role != "system"]


def _system(record: Record) -> str:
    return "\n".join(message.content for message in record.messages if message.role == "system")


def _function(tool: Tool) -> dict[str, JsonValue]:
    return {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}


def _json_line(row: dict[str, JsonValue]) -> str:
    return _ENCODER.encode(row) + "\n"
