"""The handler of synth jobs: from a corpus to a dataset, on one event loop in the handler's thread."""

import asyncio
import gc
import logging
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import uvloop
from prometheus_client import Counter

from textmill.contracts.datasets import BudgetSpent, Cost, Counts
from textmill.contracts.jobs import Output, SynthJob
from textmill.errors import Stopped
from textmill.worker import JobContext
from textmill_synth.assembly import Assembly, open_assembly
from textmill_synth.augment import Augmentation, eval_documents
from textmill_synth.budget import open_budget
from textmill_synth.checks import Reason
from textmill_synth.corpus import Corpus, Documents
from textmill_synth.dataset import DatasetWriter, Spending
from textmill_synth.generation import Generation, Settled
from textmill_synth.known import load_known
from textmill_synth.ledger import Ledger
from textmill_synth.llm import FaultKind
from textmill_synth.settings import SynthSettings
from textmill_synth.tally import Tally
from textmill_synth.topics import validate_question_sets

log = logging.getLogger(__name__)
T = TypeVar("T")
_PASSAGES_AHEAD = 2
"""Passages in hand per permit: while some wait before a next try, others have work. More of them would be prepared
before the first answers are looked at."""
_SWITCH_S = 0.0005
"""How long the thread that writes may keep the event loop from its turn; by default ten times as long."""
_OBJECTS_A_COLLECTION = 50_000
"""New objects between two collections: some 10 MB of garbage at most."""

CALLS = Counter("textmill_synth_calls_total", "Tries of LLM calls, and calls found in the ledger", ["outcome"])
REQUESTED = Counter("textmill_synth_answers_requested_total", "Answers asked for, however they ended")
RECORDS = Counter("textmill_synth_answers_total", "Answers asked for, by how they ended", ["outcome", "reason"])
TOKENS = Counter("textmill_synth_tokens_total", "Tokens paid, by direction", ["direction"])
DROPS = Counter("textmill_synth_rows_dropped_total", "Rows made and left out of the dataset, by rule", ["rule"])
RUNGS = Counter("textmill_synth_rungs_total", "Tries to make use of a response, by rung", ["rung", "outcome"])


def _begin_at_zero() -> None:
    """A series that begins with its first event hides that one from Prometheus's ``increase()``."""
    for outcome in ("ok", "reused", *get_args(FaultKind)):
        CALLS.labels(outcome)
    for reason in get_args(Reason):
        RECORDS.labels("rejected", reason)
    RECORDS.labels("accepted", "")
    RECORDS.labels("dead_lettered", "")
    for direction in ("prompt", "completion"):
        TOKENS.labels(direction)


_begin_at_zero()


@dataclass(frozen=True)
class SynthHandler:
    """Does one job. Raises ``BadRequest`` or ``NotFound`` for what can't be done, ``DependencyDown``, ``Stopped``."""

    settings: SynthSettings

    def __call__(self, job: SynthJob, context: JobContext) -> Output:
        validate_question_sets(job.question_sets)
        corpus, documents = Corpus(context.store, job.corpus_id), Documents(context.store)
        left_out = load_known(context.store, job.leave_out_known)
        tally = Tally()
        held_back = eval_documents(corpus.manifest.document_ids, job.eval_fraction, job.seed)
        augmentation = Augmentation(held_back, job.system_prompt)
        with (
            soon_switched(),
            seldom_collected(),
            tempfile.TemporaryDirectory(prefix="textmill-synth-") as folder,
            DatasetWriter(context.store, documents, augmentation, job, tally, Path(folder)) as writer,
        ):
            work = self._generate(job, context, corpus, left_out, tally, writer)
            generated = run_until_stopped(work, context)
            context.progress("write")
            prefix = f"datasets/{job.dataset_id}/{_attempt_name(context)}/"
            assembly = generated.assembly
            prompts = list(assembly.generator.prompts.values())
            form = assembly.capability.name
            check = context.raise_if_stopped
            manifest = writer.publish(prefix, generated.spending, prompts, check, assembly.rungs, form)
        for rule, count in manifest.dropped_by_rule.items():
            DROPS.labels(rule).inc(count)
        return Output(
            manifest_key=f"datasets/{job.dataset_id}/manifest.json", manifest=manifest.model_dump(mode="json")
        )

    async def _generate(
        self,
        job: SynthJob,
        context: JobContext,
        corpus: Corpus,
        left_out: frozenset[tuple[str, str]],
        tally: Tally,
        writer: DatasetWriter,
    ) -> "_Generated":
        async with (
            open_budget(job.budget, context.store, job.job_id, context.scratch) as budget,
            open_assembly(self.settings, context.store, job, lambda o: CALLS.labels(o).inc(), budget.wrap) as assembly,
        ):
            log.info("probed", extra={"job_id": job.job_id, "form": assembly.capability.name})
            window = _PASSAGES_AHEAD * self.settings.concurrency
            generation = Generation(assembly.strategies, assembly.fallback, assembly.finishing, tally, window, left_out)
            done = 0
            try:
                async for batch in generation.run(corpus.passages()):
                    await asyncio.to_thread(_write, writer, batch)
                    done += len(batch)
                    _report(context, corpus, done, tally, assembly)
            finally:
                count_calls(assembly)
        _count(tally.total())
        return _Generated(assembly, _spending(assembly, budget.spent))


@dataclass(frozen=True)
class _Generated:
    assembly: Assembly
    spending: Spending


def _write(writer: DatasetWriter, batch: list[list[Settled]]) -> None:
    for outcomes in batch:
        writer.add(outcomes)


def run_until_stopped(work: Coroutine[None, None, T], context: JobContext) -> T:
    """Run the work on an event loop of its own."""
    return uvloop.run(until_stopped(work, context))


@contextmanager
def soon_switched() -> Iterator[None]:
    """Have threads take turns often meanwhile: with 1,000 calls in flight 1 % more answers a second."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Have garbage collected seldom meanwhile.

    Each collection walks the thousands of tasks that wait for their calls, none of which is garbage. By the
    interpreter's own thresholds that takes 0.76 ms a row with 1,000 calls in flight, by ours 0.08.
    """
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_A_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def until_stopped(work: Coroutine[None, None, T], context: JobContext) -> T:
    """Run the work, or cancel it as soon as the worker must let go; its ledger flushes on the way out."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.1)
            context.raise_if_stopped()
        return task.result()
    except Stopped:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


def _spending(assembly: Assembly, budget: BudgetSpent | None) -> Spending:
    used = [ledger.used for ledger in assembly.ledgers]
    cost = Cost(
        prompt_tokens=sum(cost.prompt_tokens for cost in used),
        completion_tokens=sum(cost.completion_tokens for cost in used),
    )
    calls, reused = (sum(counts) for counts in zip(*((x.calls, x.calls_reused) for x in assembly.ledgers), strict=True))
    return Spending(cost, calls, reused, sum(client.stats.hedged for client in assembly.clients), budget)


def _report(context: JobContext, corpus: Corpus, done: int, tally: Tally, assembly: Assembly) -> None:
    context.progress(
        "generate",
        done,
        corpus.manifest.passages,
        "passages",
        accepted=tally.accepted.total(),
        rejected=tally.rejected.total(),
        dead_lettered=tally.dead_lettered.total(),
        left_out=tally.left_out.total(),
        calls=sum(ledger.calls for ledger in assembly.ledgers),
        calls_reused=sum(ledger.calls_reused for ledger in assembly.ledgers),
        **assembly.rungs.figures(),
    )


def _count(counts: Counts) -> None:
    """Of a generation that came to its end, whatever becomes of it: requested is the sum of the others."""
    REQUESTED.inc(counts.requested)
    RECORDS.labels("accepted", "").inc(counts.accepted)
    RECORDS.labels("dead_lettered", "").inc(counts.dead_lettered)
    for reason, count in counts.rejected_by_reason.items():
        RECORDS.labels("rejected", reason).inc(count)


def count_calls(assembly: Assembly) -> None:
    for ledger in assembly.ledgers:
        count_ledger(ledger)
    for outcome, counts in (("tried", assembly.rungs.tried), ("gained", assembly.rungs.gained)):
        for (_, rung), count in counts.items():
            RUNGS.labels(rung, outcome).inc(count)


def count_ledger(ledger: Ledger) -> None:
    CALLS.labels("reused").inc(ledger.calls_reused)
    TOKENS.labels("prompt").inc(ledger.paid.prompt_tokens)
    TOKENS.labels("completion").inc(ledger.paid.completion_tokens)


def _attempt_name(context: JobContext) -> str:
    """Life and number of the attempt, as its scratch prefix has them: no replay writes over an earlier life."""
    return f"attempt-{context.scratch.rstrip('/').rsplit('/', 1)[-1].removeprefix('attempt-')}"
