"""Writes a dataset: outcomes come in, in passage order; records, rejects, exports, prompts and card go to the store.

Everything lies under one prefix that belongs to the attempt. How answers ended is counted here, what becomes of their
rows is decided in ``row_writer``.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from textmill.contracts.datasets import (
    AnswerForm,
    BudgetSpent,
    Cost,
    DatasetManifest,
    Reject,
    Rung,
    RungYield,
    Strategy,
)
from textmill.contracts.jobs import SynthJob
from textmill.errors import JobFailed
from textmill.store import ObjectStore
from textmill_synth.augment import Augmentation, QuestionIndex
from textmill_synth.card import put_card
from textmill_synth.checks import Finding
from textmill_synth.corpus import Documents
from textmill_synth.croissant import with_croissant
from textmill_synth.generation import Settled
from textmill_synth.ladder import RungTally
from textmill_synth.prompts import Prompt
from textmill_synth.quality.screen import Verdict
from textmill_synth.row_writer import RowWriter, WrittenRows
from textmill_synth.spool import Spool
from textmill_synth.strategies.base import Answer, DeadLetter, Outcome, Rejection
from textmill_synth.tally import Tally


@dataclass(frozen=True)
class Spending:
    """What the calls behind the dataset cost, those of earlier attempts and jobs included.

    ``hedged_calls`` were made a second time because the first took long. ``budget`` is None without one.
    """

    cost: Cost
    calls: int
    calls_reused: int
    hedged_calls: int = 0
    budget: BudgetSpent | None = None


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
        self._questions = QuestionIndex(job.asking.near_duplicate)
        self._files = ExitStack()
        self._rows = RowWriter(store, folder, job.quality, job.seed)
        self._prompt_versions: set[str] = set()
        self._models: set[str] = set()
        self._rungs: Counter[Rung] = Counter()
        self._passages = 0
        self.passages_skipped = 0

    def __enter__(self) -> "DatasetWriter":
        self._files.enter_context(self._rows)
        self._rejects = self._files.enter_context(Spool(self._folder / "rejects.jsonl"))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._files.close()

    def add(self, outcomes: list[Settled]) -> None:
        """Write down how the answers asked of one passage ended."""
        self._passages += 1
        self.passages_skipped += not outcomes
        for settled in outcomes:
            outcome = self._admitted(settled.outcome)
            if isinstance(outcome, Answer):
                self._accept(settled, outcome)
            else:
                self._reject(settled, outcome)

    def publish(
        self,
        prefix: str,
        spending: Spending,
        prompts: Sequence[Prompt],
        check: Callable[[], None],
        rungs: RungTally,
        answer_form: AnswerForm,
    ) -> DatasetManifest:
        """Upload all under ``prefix`` and return the manifest, which the caller writes last.

        Raises:
            JobFailed: no answer was accepted; the rejects are uploaded all the same.
        """
        rejects_key = self._upload_rejects(prefix)
        self._fail_without_answers(rejects_key)
        used = {prompt.version: prompt for prompt in prompts if prompt.version in self._prompt_versions}
        for prompt in used.values():
            self._store.put(prompt.key, prompt.text.encode())
        rows = self._rows.publish(prefix, check)
        bare = self._manifest(prefix, rejects_key, rows, spending, rungs, answer_form)
        manifest = with_croissant(self._store, bare, prefix, check)
        prompt_keys = {version: prompt.key for version, prompt in used.items()}
        put_card(self._store, manifest, rows.quality, rows.examples, prompt_keys, self.passages_skipped)
        return manifest

    def _manifest(
        self,
        prefix: str,
        rejects_key: str,
        rows: WrittenRows,
        spending: Spending,
        rungs: RungTally,
        answer_form: AnswerForm,
    ) -> DatasetManifest:
        return DatasetManifest(
            dataset_id=self._job.dataset_id,
            corpus_id=self._job.corpus_id,
            records=rows.records,
            counts=self._tally.total(),
            counts_by_strategy=self._tally.by_strategy(),
            cost=spending.cost,
            calls=spending.calls,
            calls_reused=spending.calls_reused,
            records_keys=rows.records_keys,
            rejects_key=rejects_key,
            card_key=f"{prefix}README.md",
            exports=rows.exports,
            export_notes=rows.export_notes,
            document_ids=rows.document_ids,
            prompt_versions=sorted(self._prompt_versions),
            models=sorted(self._models),
            rows_made=rows.rows_made,
            dropped_by_rule=rows.dropped_by_rule,
            drops_key=rows.drops_key,
            quality_key=rows.quality_key,
            rungs=self._rung_yields(rungs),
            coverage=self._questions.coverage.report(),
            hedged_calls=spending.hedged_calls,
            budget_spent=spending.budget,
            passages=self._passages,
            left_out=self._tally.left_out.total(),
            answer_form=answer_form,
        )

    def _fail_without_answers(self, rejects_key: str) -> None:
        total = self._tally.total()
        if total.accepted == 0:
            raise JobFailed(
                f"no record: {total.requested} answers asked for, rejected {total.rejected_by_reason}, dead-lettered "
                f"{total.dead_lettered}, passages without a question {self.passages_skipped}; see {rejects_key}, and "
                "check the question sets' subject and language against the passages"
            )

    def _admitted(self, outcome: Outcome) -> Outcome:
        """An answer to a question that the dataset has already is rejected."""
        admitted = self._questions.admit(outcome) if isinstance(outcome, Answer) else outcome
        if isinstance(admitted, Finding) and isinstance(outcome, Answer):
            return Rejection(admitted.reason, admitted.detail, outcome.text, outcome.prompted)
        assert not isinstance(admitted, Finding)
        return admitted

    def _accept(self, settled: Settled, answer: Answer) -> None:
        made = (settled.passage, settled.strategy, answer, self._documents.locate)
        for record in self._augmentation.records(*made):
            self._rows.add(record)
        for record, drop in self._augmentation.dropped(*made):
            self._rows.drop(record, Verdict(drop.reason, drop.value, drop.threshold))
        if answer.prompted:
            self._rungs[answer.prompted.rung] += 1
        self._note(answer)
        self._prompt_versions.update(p.prompt_version for p in answer.topic.ask if p.prompt_version)
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
            model=prompted.call.completion.model if prompted else None,
            call_id=prompted.call.call_id if prompted else None,
            rung=prompted.rung if prompted else None,
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
            self._models.add(outcome.prompted.call.completion.model)

    def _rung_yields(self, tally: RungTally) -> dict[Rung, RungYield]:
        """In how many responses each rung was tried and helped, and in how many accepted answers that ended."""
        tried, gained = _by_rung(tally.tried), _by_rung(tally.gained)
        return {
            rung: RungYield(tried=tried[rung], gained=gained[rung], accepted=self._rungs[rung])
            for rung in sorted({*tried, *self._rungs})
        }

    def _upload_rejects(self, prefix: str) -> str:
        key = f"{prefix}rejects.jsonl"
        self._store.put_stream(key, (line + b"\n" for _, line in self._rejects.in_order()))
        return key


def _by_rung(counts: Mapping[tuple[Strategy, Rung], int]) -> Counter[Rung]:
    found: Counter[Rung] = Counter()
    for (_, rung), count in counts.items():
        found[rung] += count
    return found
