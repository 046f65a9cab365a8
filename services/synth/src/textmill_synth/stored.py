"""Reads datasets back from the store: pages of records, one record by its id, who depends on a dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from textmill.contracts.base import Contract
from textmill.contracts.datasets import DatasetManifest, Record, Reject, Split
from textmill.contracts.documents import Document, Span
from textmill.contracts.runs import ModelManifest
from textmill.errors import Conflict, NotFound
from textmill.store import ObjectStore
from textmill_synth.corpus import Corpus, Documents, stored_lines


class EvidenceSource(Contract):
    """Where an answer comes from. ``original`` is read anew from the document's bytes in the record's span."""

    span: Span
    original: str
    verbatim: bool


class RecordLineage(Contract):
    """The way back from an answer: its record, its passage, its document, and the sentence there."""

    record: Record
    corpus_id: str
    passage_id: str
    passage_index: int
    passage_text: str
    heading: str | None
    document: Document
    evidence: EvidenceSource


@dataclass(frozen=True)
class StoredDatasets:
    store: ObjectStore

    def dataset_ids(self, after: str = "") -> Iterator[str]:
        """Of all datasets that are complete, oldest first, from the first past ``after``."""
        for info in self.store.list("datasets/", f"datasets/{after}/~" if after else ""):
            dataset_id, _, name = info.key.removeprefix("datasets/").partition("/")
            if name == "manifest.json":
                yield dataset_id

    def manifest(self, dataset_id: str) -> DatasetManifest:
        try:
            return DatasetManifest.model_validate_json(self.store.get(_manifest_key(dataset_id)))
        except NotFound as exc:
            raise NotFound(f"no dataset {dataset_id!r}, or its job isn't done yet") from exc

    def records(self, dataset_id: str, split: Split, after: int, limit: int) -> list[Record]:
        """At most ``limit`` records from row ``after`` on. Reads the row groups they lie in, nothing else."""
        file = self._parquet(self.manifest(dataset_id).records_keys[split])
        found: list[Record] = []
        start = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start + rows > after and len(found) < limit:
                table = file.read_row_group(group).slice(max(0, after - start), limit - len(found))
                found += _records(table)
            start += rows
        return found

    def record(self, dataset_id: str, record_id: str) -> Record:
        """Reads the id column of each split, and one row group. Raises ``NotFound``."""
        for key in self.manifest(dataset_id).records_keys.values():
            file = self._parquet(key)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["record_id"]).column(0)
                row = pc.index(ids, record_id).as_py()
                if row >= 0:
                    return _records(file.read_row_group(group).slice(row, 1))[0]
        raise NotFound(f"dataset {dataset_id} has no record {record_id!r}")

    def rejects(self, dataset_id: str, after: int, limit: int) -> list[Reject]:
        """At most ``limit`` rejects from line ``after`` on. Reads the file up to there."""
        lines = stored_lines(self.store, self.manifest(dataset_id).rejects_key)
        rows = (line for number, line in enumerate(lines) if after <= number < after + limit)
        return [Reject.model_validate_json(line) for line in rows]

    def lineage(self, dataset_id: str, record_id: str) -> RecordLineage:
        record, corpus_id = self.record(dataset_id, record_id), self.manifest(dataset_id).corpus_id
        passage, documents = Corpus(self.store, corpus_id).passage(record.passage_id), Documents(self.store)
        original = documents.original(record.document_id, record.evidence_span)
        return RecordLineage(
            record=record,
            corpus_id=corpus_id,
            passage_id=passage.passage_id,
            passage_index=passage.index,
            passage_text=passage.text,
            heading=passage.heading,
            document=documents.get(record.document_id),
            evidence=EvidenceSource(span=record.evidence_span, original=original, verbatim=original == record.evidence),
        )

    def delete(self, dataset_id: str) -> None:
        """Remove the dataset, its manifest first. Calls stay in the ledger.

        Raises:
            Conflict: models were trained on it; the message names them.
        """
        self.manifest(dataset_id)
        models = self._models_of(dataset_id)
        if models:
            raise Conflict(
                f"dataset {dataset_id} is what these models were trained on: {', '.join(models)}; delete them first"
            )
        self.store.delete(_manifest_key(dataset_id))
        for info in list(self.store.list(f"datasets/{dataset_id}/")):
            self.store.delete(info.key)

    def _models_of(self, dataset_id: str) -> Sequence[str]:
        manifests = (i.key for i in self.store.list("models/") if i.key.endswith("/manifest.json"))
        models = (ModelManifest.model_validate_json(self.store.get(key)) for key in manifests)
        return [model.model_id for model in models if model.lineage.dataset_id == dataset_id]

    def _parquet(self, key: str) -> pq.ParquetFile:
        return pq.ParquetFile(pa.PythonFile(_RangeReader(self.store, key), mode="r"))


class _RangeReader:
    """A file-like view of an object: what Parquet's reader asks for is one range GET each."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._position = 0
        self._size = next((info.size_bytes for info in store.list(key) if info.key == key), -1)
        if self._size < 0:
            raise NotFound(f"no object at {key!r}, though a manifest names it")
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._position + size)
        data = self._store.get_range(self._key, self._position, end)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


def _manifest_key(dataset_id: str) -> str:
    return f"datasets/{dataset_id}/manifest.json"


def _records(table: pa.Table) -> list[Record]:
    return [Record.model_validate(row) for row in table.to_pylist()]
