"""The forms in which a dataset leaves: Parquet with every field of a record, and what other trainers read.

Each text format is one function from a record to one line. Knows nothing of stores or jobs.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from textmill.contracts.datasets import Message, Record

ROWS_PER_GROUP = 1_000
_SPAN = pa.struct([(name, pa.int64()) for name in ("char_start", "char_end", "byte_start", "byte_end")])
_COST = pa.struct([(name, pa.int64()) for name in ("prompt_tokens", "completion_tokens")])
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TYPES: Mapping[str, pa.DataType] = {
    "schema_version": pa.int32(),
    "messages": _MESSAGES,
    "key_facts": pa.list_(pa.string()),
    "evidence_span": _SPAN,
    "cost": _COST,
}
PARQUET_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Record.model_fields])
"""The columns are a record's fields, in their order."""


@dataclass(frozen=True)
class TextFormat:
    """``header`` is written once, before the first line. Lines carry their own line break."""

    file_name: str
    media_type: str
    line: Callable[[Record], str]
    header: str = ""


def _alpaca(record: Record) -> str:
    *history, user, reply = _turns(record)
    row: dict[str, JsonValue] = {"instruction": user.content, "input": "", "output": reply.content}
    if system := _system(record):
        row["system"] = system
    if history:
        row["history"] = [[q.content, a.content] for q, a in zip(history[::2], history[1::2], strict=True)]
    return _json_line(row)


def _sharegpt(record: Record) -> str:
    names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
    return _json_line({"conversations": [{"from": names[m.role], "value": m.content} for m in record.messages]})


def _chatml(record: Record) -> str:
    return _json_line({"messages": [{"role": m.role, "content": m.content} for m in record.messages]})


def _csv(record: Record) -> str:
    return csv_line([record.question, record.answer])


def csv_line(values: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


TEXT_FORMATS: Mapping[str, TextFormat] = {
    "alpaca": TextFormat("alpaca.jsonl", "application/jsonl", _alpaca),
    "sharegpt": TextFormat("sharegpt.jsonl", "application/jsonl", _sharegpt),
    "chatml": TextFormat("chatml.jsonl", "application/jsonl", _chatml),
    "csv": TextFormat("content-summary.csv", "text/csv", _csv, header=csv_line(["content", "summary"])),
}


class ParquetFile:
    """Writes records as Parquet, ``ROWS_PER_GROUP`` in memory at a time. A context manager; leaving it closes."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, PARQUET_SCHEMA, compression="zstd")
        self._rows: list[dict[str, JsonValue]] = []

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush()
        self._writer.close()

    def write(self, record: Record) -> None:
        self._rows.append(record.model_dump(mode="json"))
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=PARQUET_SCHEMA))
            self._rows = []


def _turns(record: Record) -> list[Message]:
    return [message for message in record.messages if message.role != "system"]


def _system(record: Record) -> str:
    return "\n".join(message.content for message in record.messages if message.role == "system")


def _json_line(row: dict[str, JsonValue]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
