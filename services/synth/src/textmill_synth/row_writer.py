"""Writes the rows of a dataset, whoever made them: looks at the set as a whole, drops with a reason, exports the rest.

Knows nothing of strategies, calls or how answers ended. To write a dataset from records:

    with RowWriter(store, folder, quality, seed) as rows:
        for record in records:
            rows.add(record)
        written = rows.publish("datasets/ds_1/attempt-1/", context.raise_if_stopped)
    # written.records, .records_keys, .exports, .rows_made, .dropped_by_rule, ... are a manifest's fields.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import get_args

from textmill.contracts.base import StoredContract
from textmill.contracts.datasets import ExportNote, Record, Split
from textmill.contracts.quality import Drop, PiiKind, QualityReport, RowFinding
from textmill.contracts.synthesis import QualityOptions
from textmill.store import ObjectStore
from textmill_synth.augment import shuffle_key
from textmill_synth.export import ParquetFile, TextExports
from textmill_synth.quality.balance import BalanceTally, warnings
from textmill_synth.quality.screen import JUDGED, Screen, Verdict
from textmill_synth.spool import Spool

SPLITS: tuple[Split, ...] = get_args(Split)
_DROPS, _FINDINGS, _QUALITY = "drops.jsonl", "findings.jsonl", "quality.json"
_CARD_EXAMPLES = 6
_STOP_CHECK_ROWS = 1_000


@dataclass(frozen=True)
class WrittenRows:
    """What lies in the store now, in the words of a dataset's manifest. ``examples`` are for its card."""

    records: dict[Split, int]
    records_keys: dict[Split, str]
    exports: dict[str, str]
    export_notes: dict[str, ExportNote]
    rows_made: int
    dropped_by_rule: dict[str, int]
    drops_key: str
    quality_key: str
    document_ids: Sequence[str]
    prompt_versions: Sequence[str]
    models: Sequence[str]
    quality: QualityReport
    examples: Sequence[Record]


class RowWriter:
    """A context manager: files in ``folder`` are open between entering and leaving.

    Rows come in a fixed order: of two that are nearly the same the first stays. Memory holds an index of the rows, of
    some 120 bytes a short row and 300 a long one, never the rows.
    """

    def __init__(self, store: ObjectStore, folder: Path, quality: QualityOptions, seed: int) -> None:
        self._store = store
        self._folder = folder
        self._quality = quality
        self._seed = seed
        self._files = ExitStack()
        self._copies: dict[tuple[Split, int], int] = {}
        self._made = 0
        self._dropped: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._pii: Counter[PiiKind] = Counter()
        self._written: Counter[Split] = Counter()
        self._balance = {split: BalanceTally() for split in SPLITS}
        self._document_ids: dict[str, None] = {}
        self._prompt_versions: set[str] = set()
        self._models: set[str] = set()
        self._examples: dict[str, Record] = {}

    def __enter__(self) -> "RowWriter":
        self._spools = {split: self._files.enter_context(Spool(self._folder / f"{split}.jsonl")) for split in SPLITS}
        self._drops = self._files.enter_context(_Lines(self._folder / _DROPS))
        self._findings = self._files.enter_context(_Lines(self._folder / _FINDINGS))
        self._screen = Screen(self._quality, self._spools)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()

    def add(self, record: Record, copy_of: int | None = None) -> int:
        """Take a row in and number it within its split. Whether it stays is decided in ``publish``.

        A copy, which a mixture makes on purpose, stays or goes with the row that it is a copy of.
        """
        self._note_made(record)
        number = self._spools[record.split].append(record.to_json(), shuffle_key(record.record_id, self._seed))
        if copy_of is None:
            self._screen.note(number, record)
        else:
            self._copies[record.split, number] = copy_of
        return number

    def drop(self, record: Record, verdict: Verdict) -> None:
        """Take in a row that was made and is already known not to stay."""
        self._note_made(record)
        self._write_drop(record, verdict)

    def publish(self, prefix: str, check: Callable[[], None]) -> WrittenRows:
        """Judge all rows, write those that stay, the drop ledger and the quality report under ``prefix``.

        ``check`` is called every thousand rows and raises to stop.

        Raises:
            AssertionError: a row was neither written nor dropped.
        """
        notes: dict[str, ExportNote] = {}
        names: dict[str, str] = {}
        for split in JUDGED:
            self._screen.compare(split)
            with ExitStack() as stack:
                parquet = stack.enter_context(ParquetFile(self._folder / _parquet_name(split)))
                texts = stack.enter_context(TextExports(self._folder)) if split == "train" else None
                for line, record in self._staying(split, check):
                    parquet.write(line)
                    if texts:
                        texts.write(record)
            if texts:
                notes, names = texts.notes(), dict(texts.file_names())
        settled = self._written.total() + self._dropped.total()
        assert self._made == settled, f"{self._made} rows were made, {settled} written or dropped"
        self._drops.flush()
        return self._upload_all(prefix, names, notes)

    def _staying(self, split: Split, check: Callable[[], None]) -> Iterator[tuple[bytes, Record]]:
        """The rows of a split that are written, as JSON too, in training order; the others go to the drop ledger."""
        for n, (number, line) in enumerate(self._spools[split].in_order()):
            if n % _STOP_CHECK_ROWS == 0:
                check()
            record = Record.model_validate_json(line)
            verdict = self._screen.judge(self._copies.get((split, number), number), record)
            if isinstance(verdict, Verdict):
                self._write_drop(record, verdict)
            else:
                self._note_written(record, verdict)
                yield line, record

    def _note_made(self, record: Record) -> None:
        self._made += 1
        self._document_ids[record.document_id] = None
        if record.prompt_version:
            self._prompt_versions.add(record.prompt_version)
        if record.model:
            self._models.add(record.model)

    def _note_written(self, record: Record, findings: Sequence[RowFinding]) -> None:
        self._written[record.split] += 1
        self._balance[record.split].note(record)
        for finding in findings:
            self._found[finding.finding] += 1
            self._pii.update(finding.pii)
            self._findings.write(finding)
        if not findings and len(self._examples) < _CARD_EXAMPLES:
            self._examples.setdefault(record.answer, record)

    def _write_drop(self, record: Record, verdict: Verdict) -> None:
        self._dropped[verdict.rule] += 1
        drop = Drop(
            record_id=record.record_id,
            split=record.split,
            rule=verdict.rule,
            value=verdict.value,
            threshold=verdict.threshold,
            text=f"{record.question}\n{record.answer}",
            against=verdict.against,
            record=record,
        )
        self._drops.write(drop)

    def _upload_all(self, prefix: str, names: Mapping[str, str], notes: dict[str, ExportNote]) -> WrittenRows:
        self._findings.flush()
        quality = self._report(self._upload(prefix, _FINDINGS))
        self._store.put(f"{prefix}{_QUALITY}", quality.to_json())
        return WrittenRows(
            records={split: self._written[split] for split in SPLITS},
            records_keys={split: self._upload(prefix, _parquet_name(split)) for split in SPLITS},
            exports={name: self._upload(prefix, file_name) for name, file_name in names.items()},
            export_notes=notes,
            rows_made=self._made,
            dropped_by_rule=dict(sorted(self._dropped.items())),
            drops_key=self._upload(prefix, _DROPS),
            quality_key=f"{prefix}{_QUALITY}",
            document_ids=list(self._document_ids),
            prompt_versions=sorted(self._prompt_versions),
            models=sorted(self._models),
            quality=quality,
            examples=list(self._examples.values()),
        )

    def _report(self, findings_key: str) -> QualityReport:
        balance = {split: tally.balance() for split, tally in self._balance.items()}
        return QualityReport(
            rows_made=self._made,
            dropped_by_rule=dict(sorted(self._dropped.items())),
            findings=dict(sorted(self._found.items())),
            pii=dict(sorted(self._pii.items())),
            balance=balance,
            warnings=list(warnings(balance, self._made, self._dropped, self._found)),
            findings_key=findings_key,
        )

    def _upload(self, prefix: str, name: str) -> str:
        self._store.put_stream(f"{prefix}{name}", _chunks(self._folder / name))
        return f"{prefix}{name}"


class _Lines:
    """A file of JSON lines. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(self, value: StoredContract) -> None:
        self._file.write(value.to_json() + b"\n")

    def flush(self) -> None:
        self._file.flush()


def _parquet_name(split: Split) -> str:
    return f"records-{split}.parquet"


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
