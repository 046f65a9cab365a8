"""The held-out questions of a dataset, as chat messages to send and facts to look for."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet

from textmill.contracts.datasets import DatasetManifest, Record
from textmill.errors import JobFailed, NotFound
from textmill.store import ObjectStore


@dataclass(frozen=True)
class HeldOut:
    """``messages`` end with the question; ``expected`` is the dataset's own answer."""

    record_id: str
    messages: Sequence[dict[str, str]]
    question: str
    key_facts: Sequence[str]
    expected: str


def held_out(store: ObjectStore, dataset_id: str, limit: int) -> list[HeldOut]:
    """The first ``limit`` records of the split "heldout" that have key facts, in the dataset's order.

    Raises:
        NotFound: no such dataset.
        JobFailed: it has no held-out records that can be scored.
    """
    try:
        manifest = DatasetManifest.model_validate_json(store.get(f"datasets/{dataset_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no dataset {dataset_id}: GET /v1/datasets of synth lists them") from exc
    key = manifest.records_keys.get("heldout")
    records = _records(store.get(key)) if key else []
    found = [_question(record) for record in records if record.key_facts][:limit]
    if not found:
        raise JobFailed(
            f"dataset {dataset_id} has no held-out records with key facts: give its questions 'held_out' wordings"
        )
    return found


def _records(parquet: bytes) -> list[Record]:
    table = pyarrow.parquet.read_table(io.BytesIO(parquet))
    return [Record.model_validate(row) for row in table.to_pylist()]


def _question(record: Record) -> HeldOut:
    last = max(i for i, message in enumerate(record.messages) if message.role == "user")
    messages = [{"role": m.role, "content": m.content} for m in record.messages[: last + 1]]
    return HeldOut(record.record_id, messages, record.question, record.key_facts, record.answer)
