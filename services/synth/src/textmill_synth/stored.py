"""Reads datasets back from the store: pages of records, one record by its id, who depends on a dataset."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import get_args

from textmill.contracts.base import Contract
from textmill.contracts.datasets import DatasetManifest, Record, Reject, Split
from textmill.contracts.documents import Document, Passage, Span
from textmill.contracts.quality import Drop
from textmill.contracts.runs import ModelManifest
from textmill.errors import Conflict, NotFound
from textmill.store import ObjectStore
from textmill_synth.corpus import Corpus, Documents, stored_lines
from textmill_synth.rowgroups import RowGroup, row_groups

SPLITS: tuple[Split, ...] = get_args(Split)


class EvidenceSource(Contract):
    """Where an answer comes from. ``original`` is read anew from the document's bytes in the record's span."""

    span: Span
    original: str
    verbatim: bool


class FurtherSource(Contract):
    """Another passage that the answer draws on."""

    passage_id: str
    passage_text: str
    document: Document
    evidence: EvidenceSource


class SourceRecord(Contract):
    """A record of another dataset."""

    dataset_id: str
    record_id: str


class RecordLineage(Contract):
    """The way back from an answer: its record, its passage, its document, and the sentence there.

    ``taken_from`` leads from a mixture or a frozen set to the record that synth made, the nearest first.
    """

    record: Record
    corpus_id: str
    passage_id: str
    passage_index: int
    passage_text: str
    heading: str | None
    document: Document
    evidence: EvidenceSource
    more_evidence: Sequence[FurtherSource] = ()
    taken_from: Sequence[SourceRecord] = ()


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

    def groups(self, dataset_id: str, splits: Sequence[Split] = SPLITS) -> Iterator[RowGroup]:
        """All rows of these splits, in order. Reads the files' ends; rows are read when they are asked for."""
        keys, start = self.manifest(dataset_id).records_keys, 0
        for split in (split for split in splits if split in keys):
            for group in row_groups(self.store, keys[split], start):
                yield group
                start = group.end

    def stream(self, dataset_id: str, splits: Sequence[Split] = SPLITS) -> Iterator[Record]:
        """All records of these splits, a row group in memory at a time."""
        for group in self.groups(dataset_id, splits):
            yield from group.records()

    def records(self, dataset_id: str, split: Split, after: int, limit: int) -> list[Record]:
        """At most ``limit`` records from row ``after`` on. Reads the row groups they lie in, nothing else."""
        found: list[Record] = []
        for group in self.groups(dataset_id, (split,)):
            if len(found) < limit and group.end > after:
                first = max(0, after - group.start)
                found += group.records(range(first, min(group.size, first + limit - len(found))))
        return found

    def record(self, dataset_id: str, record_id: str) -> Record:
        """Reads the id column of each split, and one row group. Raises ``NotFound``."""
        for group in self.groups(dataset_id):
            ids = group.column("record_id")
            if record_id in ids:
                return next(group.records([ids.index(record_id)]))
        raise NotFound(f"dataset {dataset_id} has no record {record_id!r}")

    def rejects(self, dataset_id: str, after: int, limit: int) -> list[Reject]:
        """At most ``limit`` rejects from line ``after`` on. Reads the file up to there."""
        return [Reject.model_validate_json(line) for line in self._lines(dataset_id, after, limit)]

    def reject_rows(self, dataset_id: str, after: int = 0) -> Iterator[tuple[int, Reject]]:
        """Rejects with the numbers of their lines, from line ``after`` on."""
        lines = stored_lines(self.store, self.manifest(dataset_id).rejects_key)
        return ((n, Reject.model_validate_json(line)) for n, line in enumerate(lines) if n >= after)

    def drops(self, dataset_id: str, after: int, limit: int) -> list[Drop]:
        """At most ``limit`` rows that were made and left out, from line ``after`` on. None of older datasets."""
        key = self.manifest(dataset_id).drops_key
        lines = islice(stored_lines(self.store, key), after, after + limit) if key else ()
        return [Drop.model_validate_json(line) for line in lines]

    def passages(self, dataset_id: str, record: Record) -> list[Passage]:
        """All that the record's answer draws on, its own passage first. Reads the corpus up to them."""
        wanted = dict.fromkeys([record.passage_id, *(e.passage_id for e in record.more_evidence)])
        corpus_id = self.manifest(self._origin(dataset_id, record)[0]).corpus_id
        matching = (p for p in Corpus(self.store, corpus_id).passages() if p.passage_id in wanted)
        found = {passage.passage_id: passage for passage in islice(matching, len(wanted))}
        if missing := wanted.keys() - found.keys():
            raise NotFound(f"corpus {corpus_id} has no passage {', '.join(sorted(missing))}")
        return [found[passage_id] for passage_id in wanted]

    def lineage(self, dataset_id: str, record_id: str) -> RecordLineage:
        record, documents = self.record(dataset_id, record_id), Documents(self.store)
        passage, *others = self.passages(dataset_id, record)
        made_in, taken_from = self._origin(dataset_id, record)
        texts = {other.passage_id: other.text for other in (passage, *others)}
        return RecordLineage(
            record=record,
            corpus_id=self.manifest(made_in).corpus_id,
            passage_id=passage.passage_id,
            passage_index=passage.index,
            passage_text=passage.text,
            heading=passage.heading,
            document=documents.get(record.document_id),
            evidence=_evidence(documents, record.document_id, record.evidence_span, record.evidence),
            more_evidence=[
                FurtherSource(
                    passage_id=more.passage_id,
                    passage_text=texts[more.passage_id],
                    document=documents.get(more.document_id),
                    evidence=_evidence(documents, more.document_id, more.span, more.text),
                )
                for more in record.more_evidence
            ],
            taken_from=taken_from,
        )

    def delete(self, dataset_id: str) -> None:
        """Remove the dataset, its manifest first, and its review. Calls stay in the ledger.

        Raises:
            Conflict: models were trained on it, or datasets made from it; the message names them.
        """
        self.manifest(dataset_id)
        if models := self._models_of(dataset_id):
            raise Conflict(
                f"dataset {dataset_id} is what these models were trained on: {', '.join(models)}; delete them first"
            )
        if children := self._made_from(dataset_id):
            raise Conflict(
                f"from dataset {dataset_id} these were mixed or frozen: {', '.join(children)}; delete them first"
            )
        self.store.delete(_manifest_key(dataset_id))
        for prefix in (f"datasets/{dataset_id}/", f"reviews/{dataset_id}/"):
            for info in list(self.store.list(prefix)):
                self.store.delete(info.key)

    def _origin(self, dataset_id: str, record: Record) -> tuple[str, list[SourceRecord]]:
        """The dataset that synth made the record in, and the way there."""
        way: list[SourceRecord] = []
        while record.source_dataset_id is not None and record.source_record_id is not None:
            way.append(SourceRecord(dataset_id=record.source_dataset_id, record_id=record.source_record_id))
            dataset_id, manifest = record.source_dataset_id, self.manifest(record.source_dataset_id)
            if not manifest.parent_dataset_id and not manifest.sources:
                break
            record = self.record(dataset_id, record.source_record_id)
        return dataset_id, way

    def _made_from(self, dataset_id: str) -> Sequence[str]:
        manifests = (self.manifest(found) for found in self.dataset_ids())
        return [
            m.dataset_id
            for m in manifests
            if m.parent_dataset_id == dataset_id or dataset_id in (source.dataset_id for source in m.sources)
        ]

    def _models_of(self, dataset_id: str) -> Sequence[str]:
        manifests = (i.key for i in self.store.list("models/") if i.key.endswith("/manifest.json"))
        models = (ModelManifest.model_validate_json(self.store.get(key)) for key in manifests)
        return [model.model_id for model in models if model.lineage.dataset_id == dataset_id]

    def _lines(self, dataset_id: str, after: int, limit: int) -> Iterator[bytes]:
        return islice(stored_lines(self.store, self.manifest(dataset_id).rejects_key), after, after + limit)


def _evidence(documents: Documents, document_id: str, span: Span, text: str) -> EvidenceSource:
    original = documents.original(document_id, span)
    return EvidenceSource(span=span, original=original, verbatim=original == text)


def _manifest_key(dataset_id: str) -> str:
    return f"datasets/{dataset_id}/manifest.json"
