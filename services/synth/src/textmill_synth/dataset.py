"""Writes a dataset: outcomes come in, in passage order; records, rejects, exports, prompts and card go to the store.

Everything lies under one prefix that belongs to the attempt. Memory holds an index of the rows, never the rows.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from textmill.contracts.datasets import Cost, DatasetManifest, Record, Reject, Split
from textmill.contracts.jobs import SynthJob
from textmill.errors import JobFailed
from textmill.store import ObjectStore
from textmill_synth.augment import Augmentation, QuestionIndex, shuffle_key
from textmill_synth.card import render_card
from textmill_synth.corpus import Documents
from textmill_synth.export import TEXT_FORMATS, ParquetFile
from textmill_synth.generation import Settled
from textmill_synth.prompts import Prompt
from textmill_synth.spool import Spool
from textmill_synth.strategies.base import Answer, DeadLetter, Rejection
from textmill_synth.tally import Tally

SPLITS: tuple[Split, ...] = get_args(Split)
_CARD_EXAMPLES = 6
_STOP_CHECK_ROWS = 1_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spending:
    """What the calls behind the dataset cost, those of earlier attempts and jobs included."""

    cost: Cost
    calls: int
    calls_reused: int


class DatasetWriter:
    """A context manager: files in ``folder`` are open between entering and leaving."""

    def __init__(
        self,
        store: ObjectStore,
        documents: Documents,
        augmentation: Augmentation,
        job: SynthJob,
        tally: Tally,
        folder: Path,
    ) -> None:
        self._store = store
        self._documents = documents
        self._augmentation = augmentation
        self._job = job
        self._tally = tally
        self._folder = folder
        self._questions = QuestionIndex()
        self._files = ExitStack()
        self._examples: list[Record] = []
        self._document_ids: dict[str, None] = {}
        self._prompt_versions: set[str] = set()
        self._models: set[str] = set()
        self.passages_skipped = 0

    def __enter__(self) -> "DatasetWriter":
        self._spools = {split: self._files.enter_context(Spool(self._folder / f"{split}.jsonl")) for split in SPLITS}
        self._rejects = self._files.enter_context(Spool(self._folder / "rejects.jsonl"))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._files.close()

    def add(self, outcomes: list[Settled]) -> None:
        """Write down how the answers asked of one passage ended."""
        self.passages_skipped += not outcomes
        for settled in outcomes:
            outcome: Answer | Rejection | DeadLetter = settled.outcome
            if isinstance(outcome, Answer) and (clash := self._questions.claim(outcome)):
                outcome = Rejection(clash.reason, clash.detail, outcome.text, outcome.prompted)
            if isinstance(outcome, Answer):
                self._accept(settled, outcome)
            else:
                self._reject(settled, outcome)

    def publish(
        self, prefix: str, spending: Spending, prompts: Sequence[Prompt], check: Callable[[], None]
    ) -> DatasetManifest:
        """Upload all under ``prefix`` and return the manifest, which the caller writes last.

        Raises:
            JobFailed: no answer was accepted; the rejects are uploaded all the same.
        """
        rejects_key = self._upload_rejects(prefix)
        total = self._tally.total()
        if total.accepted == 0:
            raise JobFailed(
                f"no record: {total.requested} answers asked for, rejected {total.rejected_by_reason}, dead-lettered "
                f"{total.dead_lettered}, passages without a question {self.passages_skipped}; see {rejects_key}, and "
                "check the question sets' subject and language against the passages"
            )
        used = [prompt for prompt in prompts if prompt.version in self._prompt_versions]
        for prompt in used:
            self._store.put(prompt.key, prompt.text.encode())
        manifest = DatasetManifest(
            dataset_id=self._job.dataset_id,
            corpus_id=self._job.corpus_id,
            records={split: len(spool) for split, spool in self._spools.items()},
            counts=total,
            counts_by_strategy=self._tally.by_strategy(),
            cost=spending.cost,
            calls=spending.calls,
            calls_reused=spending.calls_reused,
            records_keys={split: self._upload_records(prefix, split, check) for split in SPLITS},
            rejects_key=rejects_key,
            card_key=f"{prefix}README.md",
            exports={name: self._upload(prefix, fmt.file_name) for name, fmt in TEXT_FORMATS.items()},
            document_ids=list(self._document_ids),
            prompt_versions=sorted(self._prompt_versions),
            models=sorted(self._models),
        )
        card = render_card(manifest, self._examples, self.passages_skipped, {p.version: p.key for p in used})
        self._store.put(manifest.card_key, card.encode())
        return manifest

    def _accept(self, settled: Settled, answer: Answer) -> None:
        span = self._documents.locate(settled.passage, *answer.evidence)
        records = list(self._augmentation.records(settled.passage, settled.strategy, answer, span))
        for record in records:
            order = shuffle_key(record.record_id, self._job.seed)
            self._spools[record.split].append(record.to_json(), order)
        if len(self._examples) < _CARD_EXAMPLES:
            self._examples += records[:1]
        self._document_ids[settled.passage.document_id] = None
        self._note(answer)
        self._tally.accepted[settled.strategy] += 1

    def _reject(self, settled: Settled, outcome: Rejection | DeadLetter) -> None:
        prompted = outcome.prompted if isinstance(outcome, Rejection) else None
        reject = Reject(
            passage_id=settled.passage.passage_id,
            question_id=settled.topic.question_id,
            strategy=settled.strategy,
            reason=outcome.reason,
            detail=outcome.detail,
            raw_response=outcome.raw if isinstance(outcome, Rejection) else "",
            prompt_version=prompted.prompt_version if prompted else None,
            model=self._augmentation.model if prompted else None,
            call_id=prompted.call.call_id if prompted else None,
        )
        self._rejects.append(reject.to_json(), len(self._rejects))
        self._note(outcome)
        if isinstance(outcome, DeadLetter):
            self._tally.dead_lettered[settled.strategy] += 1
        else:
            self._tally.rejected[settled.strategy, outcome.reason] += 1

    def _note(self, outcome: Answer | Rejection | DeadLetter) -> None:
        if not isinstance(outcome, DeadLetter) and outcome.prompted:
            self._prompt_versions.add(outcome.prompted.prompt_version)
            self._models.add(self._augmentation.model)

    def _upload_records(self, prefix: str, split: Split, check: Callable[[], None]) -> str:
        """Parquet for the split; the training split in all text formats beside it, in the same pass."""
        name = f"records-{split}.parquet"
        with ExitStack() as stack:
            parquet = stack.enter_context(ParquetFile(self._folder / name))
            texts = []
            for fmt in TEXT_FORMATS.values() if split == "train" else ():
                file = stack.enter_context((self._folder / fmt.file_name).open("w", encoding="utf-8", newline=""))
                file.write(fmt.header)
                texts.append((fmt, file))
            for row, line in enumerate(self._spools[split].in_order()):
                if row % _STOP_CHECK_ROWS == 0:
                    check()
                record = Record.model_validate_json(line)
                parquet.write(record)
                for fmt, file in texts:
                    file.write(fmt.line(record))
        return self._upload(prefix, name)

    def _upload_rejects(self, prefix: str) -> str:
        key = f"{prefix}rejects.jsonl"
        self._store.put_stream(key, (line + b"\n" for line in self._rejects.in_order()))
        return key

    def _upload(self, prefix: str, name: str) -> str:
        self._store.put_stream(f"{prefix}{name}", _chunks(self._folder / name))
        return f"{prefix}{name}"


def _chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
