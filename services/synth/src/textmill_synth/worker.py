"""The handler of synth jobs: from a corpus to a dataset, on one event loop in the handler's thread."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import Counter

from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Language
from textmill.contracts.jobs import Output, SynthJob
from textmill.errors import Stopped
from textmill.worker import JobContext
from textmill_synth.admission import Admission
from textmill_synth.augment import Augmentation, eval_documents
from textmill_synth.corpus import Corpus, Documents
from textmill_synth.dataset import DatasetWriter, Spending
from textmill_synth.generation import Generation
from textmill_synth.ledger import Ledger
from textmill_synth.llm import CallFailed, ChatClient, ChatRequest, RetryPolicy, open_session
from textmill_synth.prompts import Prompt, load_prompt
from textmill_synth.responses import Summarised, TitledSummary, json_summary
from textmill_synth.settings import SynthSettings
from textmill_synth.strategies.base import Generator, ResponseForm, Strategy
from textmill_synth.strategies.passage import Extractive
from textmill_synth.strategies.qa import QuestionAnswering
from textmill_synth.strategies.summary import Summary
from textmill_synth.tally import Tally
from textmill_synth.topics import validate_question_sets

log = logging.getLogger(__name__)
LANGUAGES: tuple[Language, ...] = ("en", "zh")
_PASSAGES_AHEAD = 4
"""Passages in hand per permit: so that one slow call at the head doesn't leave the others without work."""

CALLS = Counter("textmill_synth_calls_total", "Tries of LLM calls, and calls found in the ledger", ["outcome"])
RECORDS = Counter("textmill_synth_answers_total", "Answers asked for, by how they ended", ["outcome", "reason"])
TOKENS = Counter("textmill_synth_tokens_total", "Tokens paid, by direction", ["direction"])


@dataclass(frozen=True)
class SynthHandler:
    """Does one job. Raises ``BadRequest`` or ``NotFound`` for what can't be done, ``DependencyDown``, ``Stopped``."""

    settings: SynthSettings

    def __call__(self, job: SynthJob, context: JobContext) -> Output:
        validate_question_sets(job.question_sets)
        corpus, documents = Corpus(context.store, job.corpus_id), Documents(context.store)
        model, tally = job.model or self.settings.llm_model, Tally()
        held_back = eval_documents(corpus.manifest.document_ids, job.eval_fraction, job.seed)
        augmentation = Augmentation(held_back, job.system_prompt, model)
        with (
            tempfile.TemporaryDirectory(prefix="textmill-synth-") as folder,
            DatasetWriter(context.store, documents, augmentation, job, tally, Path(folder)) as writer,
        ):
            work = self._generate(job, context, corpus, model, tally, writer)
            spending = asyncio.run(_until_stopped(work, context))
            context.progress("write")
            prefix = f"datasets/{job.dataset_id}/{_attempt_name(context)}/"
            manifest = writer.publish(prefix, spending, _prompts(), context.raise_if_stopped)
        _count(manifest)
        return Output(
            manifest_key=f"datasets/{job.dataset_id}/manifest.json", manifest=manifest.model_dump(mode="json")
        )

    async def _generate(
        self, job: SynthJob, context: JobContext, corpus: Corpus, model: str, tally: Tally, writer: DatasetWriter
    ) -> Spending:
        async with self._open_ledger(job, context) as ledger:
            form = await self._form(ledger, job, model)
            generator = Generator(ledger, model, job.temperature, job.max_answer_tokens, form)
            strategies = [_strategy(name, job, generator) for name in dict.fromkeys(job.strategies)]
            fallback = Extractive(job.question_sets) if job.extractive_fallback else None
            window = _PASSAGES_AHEAD * self.settings.concurrency
            done = 0
            async for outcomes in Generation(strategies, fallback, tally, window).run(corpus.passages()):
                await asyncio.to_thread(writer.add, outcomes)
                done += 1
                _report(context, corpus, done, tally, ledger)
        return Spending(ledger.used, ledger.calls, ledger.calls_reused)

    @asynccontextmanager
    async def _open_ledger(self, job: SynthJob, context: JobContext) -> AsyncIterator[Ledger]:
        url = job.llm_url or self.settings.llm_url
        own = _origin(url) == _origin(self.settings.llm_url)
        key = self.settings.llm_api_key if own and self.settings.llm_api_key.get_secret_value() else None
        retry = RetryPolicy(max_tries=self.settings.max_tries, first_delay_s=self.settings.retry_delay_s)
        admission = Admission(self.settings.concurrency)
        async with open_session() as session:
            client = ChatClient(
                session,
                url,
                key,
                admission,
                self.settings.deadline_s,
                retry,
                lambda outcome: CALLS.labels(outcome).inc(),
            )
            async with Ledger(context.store, client) as ledger:
                try:
                    yield ledger
                finally:
                    CALLS.labels("reused").inc(ledger.calls_reused)
                    TOKENS.labels("prompt").inc(ledger.paid.prompt_tokens)
                    TOKENS.labels("completion").inc(ledger.paid.completion_tokens)

    async def _form(self, ledger: Ledger, job: SynthJob, model: str) -> ResponseForm:
        """How to ask for answers. ``auto``: JSON if the endpoint, asked once, returns the object it was asked for.

        Small models keep to the schema and not to the task (title and summary both the whole text): they get text.
        """
        if self.settings.response_mode != "auto":
            return self.settings.response_mode
        if set(job.strategies) == {"passage"}:
            return "text"
        prompt = load_prompt("probe")
        request = ChatRequest(model, prompt.render(), 0.0, 96, Summarised.model_json_schema())
        try:
            call = await ledger.ask(request, "probe", prompt.version)
        except CallFailed as exc:
            log.info("no structured output", extra={"job_id": job.job_id, "fault": exc.kind})
            return "text"
        parsed = json_summary(call.completion.text)
        return "json" if isinstance(parsed, TitledSummary) and len(parsed.title) < len(parsed.summary) else "text"


def _strategy(name: StrategyName, job: SynthJob, generator: Generator) -> Strategy:
    if name == "passage":
        return Extractive(job.question_sets)
    if name == "summary":
        return Summary(generator, _load_prompts("summary"))
    return QuestionAnswering(generator, _load_prompts("qa"), _load_prompts("qa-key"), job.question_sets, job.context)


def _load_prompts(name: str) -> dict[Language, Prompt]:
    return {language: load_prompt(f"{name}.{language}") for language in LANGUAGES}


def _prompts() -> Sequence[Prompt]:
    return [prompt for name in ("qa", "qa-key", "summary") for prompt in _load_prompts(name).values()]


async def _until_stopped(work: Coroutine[None, None, Spending], context: JobContext) -> Spending:
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


def _report(context: JobContext, corpus: Corpus, done: int, tally: Tally, ledger: Ledger) -> None:
    context.progress(
        "generate",
        done,
        corpus.manifest.passages,
        "passages",
        accepted=tally.accepted.total(),
        rejected=tally.rejected.total(),
        dead_lettered=tally.dead_lettered.total(),
        calls=ledger.calls,
        calls_reused=ledger.calls_reused,
    )


def _count(manifest: DatasetManifest) -> None:
    RECORDS.labels("accepted", "").inc(manifest.counts.accepted)
    RECORDS.labels("dead_lettered", "").inc(manifest.counts.dead_lettered)
    for reason, count in manifest.counts.rejected_by_reason.items():
        RECORDS.labels("rejected", reason).inc(count)


def _attempt_name(context: JobContext) -> str:
    """Life and number of the attempt, as its scratch prefix has them: no replay writes over an earlier life."""
    return f"attempt-{context.scratch.rstrip('/').rsplit('/', 1)[-1].removeprefix('attempt-')}"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
