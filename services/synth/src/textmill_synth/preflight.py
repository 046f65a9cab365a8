"""The handler of preflight jobs: tries a synthesis on a few passages, and says what the whole of it will be like.

The pilot goes the way of a synth job, through the same ledger: a job that follows pays for none of its calls again.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from textmill.contracts.datasets import Cost
from textmill.contracts.jobs import Output, PreflightJob
from textmill.contracts.preflight import Forecast, Interval, KnownItem, PreflightManifest, ValueCheck
from textmill.errors import JobFailed
from textmill.worker import JobContext
from textmill_synth.assembly import open_assembly
from textmill_synth.budget import BudgetGuard, open_budget
from textmill_synth.corpus import Corpus
from textmill_synth.forecast import CONFIDENCE, FIT_FROM, Pace, Population, forecast_accepted, forecast_total
from textmill_synth.generation import Generation
from textmill_synth.known import check_value, lessons, load_known, preflight_key
from textmill_synth.ledger import Ledger
from textmill_synth.llm import open_llm
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.pilot import Load, Stopwatch, Survey, Tried, chosen, fly, note_call, sources_at, survey
from textmill_synth.settings import SynthSettings
from textmill_synth.strategies.base import Generator
from textmill_synth.tally import Tally
from textmill_synth.topics import validate_question_sets
from textmill_synth.worker import CALLS, count_calls, count_ledger, run_until_stopped, seldom_collected


@dataclass(frozen=True)
class PreflightHandler:
    """Does one job. Raises ``BadRequest`` or ``NotFound`` for what can't be done, ``DependencyDown``, ``Stopped``."""

    settings: SynthSettings

    def __call__(self, job: PreflightJob, context: JobContext) -> Output:
        validate_question_sets(job.question_sets)
        corpus = Corpus(context.store, job.corpus_id)
        left_out = load_known(context.store, job.leave_out_known)
        with seldom_collected():
            work = _Preflight(self.settings, job, context, corpus, left_out).run()
            manifest = run_until_stopped(work, context)
        return Output(manifest_key=preflight_key(job.preflight_id), manifest=manifest.model_dump(mode="json"))


@dataclass(frozen=True)
class _Flown:
    """What the pilot brought, and the ledgers' figures of it."""

    survey: Survey
    tried: Sequence[Tried]
    tally: Tally
    pace: Pace
    ledgers: Sequence[Ledger]


@dataclass(frozen=True)
class _Preflight:
    settings: SynthSettings
    job: PreflightJob
    context: JobContext
    corpus: Corpus
    left_out: frozenset[tuple[str, str]]

    async def run(self) -> PreflightManifest:
        job = self.job
        async with open_budget(job.budget, self.context.store, job.job_id, self.context.scratch) as budget:
            flown = await self._fly(budget)
            value, known, base, wrong = await self._check_value(flown, budget)
        ledgers = [*flown.ledgers, base]
        return PreflightManifest(
            preflight_id=job.preflight_id,
            corpus_id=job.corpus_id,
            passages=len(flown.tried),
            concerned=len(flown.survey.places),
            corpus_passages=self.corpus.manifest.passages,
            counts=flown.tally.total(),
            counts_by_strategy=flown.tally.by_strategy(),
            forecast=_forecast(flown, job, self.settings.concurrency),
            value=value,
            known=known,
            calls=sum(ledger.calls for ledger in ledgers),
            calls_reused=sum(ledger.calls_reused for ledger in ledgers),
            cost=Cost(
                prompt_tokens=sum(ledger.used.prompt_tokens for ledger in ledgers),
                completion_tokens=sum(ledger.used.completion_tokens for ledger in ledgers),
            ),
            budget_spent=budget.spent,
            notes=[*_notes(flown, budget), *wrong],
        )

    async def _fly(self, budget: BudgetGuard) -> _Flown:
        job, watch, tally = self.job, Stopwatch(), Tally()

        def guard(endpoint: Endpoint) -> Endpoint:
            return budget.wrap(watch.wrap(endpoint))

        async with open_assembly(self.settings, self.context.store, job, _observe, guard) as assembly:
            generation = Generation(
                assembly.strategies, assembly.fallback, assembly.finishing, tally, job.passages, self.left_out
            )
            self.context.progress("survey", 0, self.corpus.manifest.passages, "passages")
            found = await asyncio.to_thread(survey, self.corpus.passages(), assembly.strategies, self.left_out)
            if not found.places:
                raise JobFailed(
                    f"nothing is asked of any of the {self.corpus.manifest.passages} passages; check the question "
                    "sets' subject and language against them, or choose a strategy that needs no questions"
                )
            places = chosen(found.places, job.passages, job.seed)
            sources = await asyncio.to_thread(sources_at, self.corpus.passages(), places)
            self.context.progress("pilot", 0, len(sources), "passages")
            for ledger in assembly.ledgers:
                ledger.observe = note_call
            watch.restart()
            try:
                tried = await fly(generation, sources)
            finally:
                count_calls(assembly)
            return _Flown(found, tried, tally, watch.pace(), assembly.ledgers)

    async def _check_value(
        self, flown: _Flown, budget: BudgetGuard
    ) -> tuple[ValueCheck | None, list[KnownItem], Ledger, list[str]]:
        """With what went wrong, in words, where the base model can't be asked at all."""
        job = self.job
        taught = lessons([(one.source.passage, answer) for one in flown.tried for answer in one.accepted])
        self.context.progress("value check", 0, len(taught), "questions")
        model, url = job.base_model or self.settings.llm_model, job.base_url or self.settings.llm_url
        async with (
            open_llm(self.settings, self.context.store, url, model, _observe, budget.wrap) as client,
            Ledger(self.context.store, client) as ledger,
        ):
            base = Generator(ledger, model, 0.0, job.max_answer_tokens, "text")
            try:
                value, known = await check_value(taught, base, job.system_prompt)
            except JobFailed as exc:
                return None, [], ledger, [f"the base model {model} can't be asked: {exc}"]
            finally:
                count_ledger(ledger)
        return value, known, ledger, []


def _observe(outcome: str) -> None:
    CALLS.labels(outcome).inc()


def _forecast(flown: _Flown, job: PreflightJob, concurrency: int) -> Forecast:
    loads, used = [one.load for one in flown.tried], [one.used for one in flown.tried]
    prices = job.budget.prices

    def total(figures: Iterable[float], size: Callable[[Load], int]) -> Interval:
        population = Population(len(flown.survey.places), size(flown.survey.total))
        return forecast_total(list(figures), [size(load) for load in loads], population)

    calls = total((u.calls for u in used), lambda load: load.requests)
    counts, population = flown.tally.total(), Population(len(flown.survey.places), flown.survey.total.topics)
    requested = total((len(one.settled) for one in flown.tried), lambda load: load.topics)
    return Forecast(
        confidence=CONFIDENCE,
        calls=calls,
        prompt_tokens=total((u.prompt_tokens for u in used), lambda load: load.characters),
        completion_tokens=total((u.completion_tokens for u in used), lambda load: load.characters),
        cost=total((u.cost(prices) for u in used), lambda load: load.characters),
        accepted=forecast_accepted(counts.accepted, counts.requested, len(loads), population, requested),
        seconds=flown.pace.seconds(calls.expected, concurrency),
        concurrency=concurrency,
    )


def _notes(flown: _Flown, budget: BudgetGuard) -> list[str]:
    """What a reader must know before trusting the figures."""
    tried, concerned = len(flown.tried), len(flown.survey.places)
    if tried == concerned:
        notes = ["all passages that anything is asked of were tried: these are no forecasts"]
    else:
        notes = [f"from and to: {CONFIDENCE:.0%} prediction intervals (least squares) from {tried} passages"]
    if tried < min(FIT_FROM, concerned):
        notes.append(f"fewer than {FIT_FROM} passages were tried: the intervals are wide, or can't be given")
    if tried < concerned and len({one.used.calls for one in flown.tried}) == 1:
        notes.append("each passage tried took as many calls: trouble that is rarer than that doesn't show in so few")
    if flown.pace.calls:
        notes.append("time: from, if the endpoint keeps its speed with more calls at once; to, if it does not")
    notes.append("duplicates between passages, and what the set's own checks drop, show only in the whole set")
    if budget.spent is not None and budget.spent.refused:
        notes.append(f"{budget.spent.refused} calls of the preflight itself were refused by the budget: all is too low")
    return notes
