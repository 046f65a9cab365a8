"""The same held-out questions to two served models, through the gateway, and what each knew."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp

from textmill.contracts.jobs import EvaluateJob, Output
from textmill.contracts.serving import Answer, EvaluationReport, ModelScore, TaskScore
from textmill.errors import DependencyDown, JobFailed
from textmill.worker import JobContext
from textmill_inference.evaluation import lm_eval
from textmill_inference.evaluation.questions import HeldOut, held_out
from textmill_inference.evaluation.score import is_correct

_TIMEOUT_S = 300.0
"""For one answer, queueing included: a slow CPU with a full queue is no error."""
_BUSY = {429, 502, 503, 504}
Tell = Callable[[int], None]


def evaluation_key(evaluation_id: str) -> str:
    return f"evaluations/{evaluation_id}/report.json"


class Evaluator:
    """Handles ``EvaluateJob``. ``key`` is shown to the gateway; empty when it is open.

    ``own_tasks`` is a folder with lm-eval tasks of the owner's.
    """

    def __init__(self, gateway_url: str, key: str = "", own_tasks: Path | None = None) -> None:
        self._gateway_url, self._key, self._own_tasks = gateway_url, key, own_tasks
        self._url = f"{gateway_url}/v1/chat/completions"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __call__(self, job: EvaluateJob, ctx: JobContext) -> Output:
        if job.lm_eval_tasks:
            lm_eval.check_installed()
        questions = held_out(ctx.store, job.dataset_id, job.max_questions)
        before = self._score(job, job.before, questions, ctx)
        after = self._score(job, job.after, questions, ctx)
        report = EvaluationReport(
            evaluation_id=job.evaluation_id,
            dataset_id=job.dataset_id,
            before=before,
            after=after,
            tasks=self._benchmarks(job, ctx) if job.lm_eval_tasks else (),
        )
        return Output(manifest_key=evaluation_key(job.evaluation_id), manifest=report.model_dump(mode="json"))

    def _benchmarks(self, job: EvaluateJob, ctx: JobContext) -> list[TaskScore]:
        found = []
        for model in (job.before, job.after):
            ctx.progress(f"lm-eval asks {model}")
            found.append(
                lm_eval.run_tasks(
                    self._gateway_url, self._key, model, job.lm_eval_tasks, job.lm_eval_limit, ctx.stopping,
                    self._own_tasks,
                )
            )  # fmt: skip
            ctx.raise_if_stopped()
        before, after = found
        return [
            TaskScore(task=task, metric=metric, before=before[task, metric], after=score)
            for (task, metric), score in after.items()
            if (task, metric) in before
        ]

    def _score(self, job: EvaluateJob, model: str, questions: Sequence[HeldOut], ctx: JobContext) -> ModelScore:
        def tell(done: int) -> None:
            ctx.progress(f"asking {model}", done, len(questions), "questions")

        tell(0)
        texts = asyncio.run(self._ask_all(job, model, questions, tell, ctx.stopping))
        ctx.raise_if_stopped()
        answers = [_judged(question, text) for question, text in zip(questions, texts, strict=True)]
        correct = sum(answer.correct for answer in answers)
        return ModelScore(
            model=model, questions=len(answers), correct=correct, accuracy=correct / len(answers), answers=answers
        )

    async def _ask_all(
        self, job: EvaluateJob, model: str, questions: Sequence[HeldOut], tell: Tell, stopping: threading.Event
    ) -> list[str]:
        """The answers in order; empty strings for the rest once ``stopping`` is set."""
        texts = [""] * len(questions)
        waiting = iter(enumerate(questions))
        done = 0

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal done
            for index, question in waiting:
                texts[index] = await self._ask(session, job, model, question)
                done += 1
                tell(done)

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers) as session:
            workers = [asyncio.create_task(work(session)) for _ in range(min(job.concurrency, len(questions)))]
            await _all_of(workers, stopping)
        return texts

    async def _ask(self, session: aiohttp.ClientSession, job: EvaluateJob, model: str, question: HeldOut) -> str:
        """Raises ``DependencyDown`` for what may work later, ``JobFailed`` for what never will."""
        body = {"model": model, "messages": list(question.messages), "temperature": 0, "max_tokens": job.max_tokens}
        try:
            async with session.post(self._url, json=body, allow_redirects=False) as response:
                data = await response.read()
                if response.status in _BUSY:
                    raise DependencyDown(f"the gateway answered {response.status} for model {model!r}")
                if response.status != 200:
                    raise JobFailed(f"the gateway answered {response.status} for model {model!r}: {data[:300]!r}")
                return str((await response.json())["choices"][0]["message"]["content"] or "")
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise DependencyDown(f"the gateway at {self._url}: {type(exc).__name__}: {exc}") from exc


async def _all_of(tasks: Sequence["asyncio.Task[None]"], stopping: threading.Event) -> None:
    """Until the last ends, one fails, or ``stopping`` is set; none is left running."""
    pending = set(tasks)
    try:
        while pending and not stopping.is_set():
            finished, pending = await asyncio.wait(pending, timeout=0.2, return_when=asyncio.FIRST_EXCEPTION)
            for task in finished:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _judged(question: HeldOut, text: str) -> Answer:
    return Answer(
        record_id=question.record_id,
        question=question.question,
        key_facts=question.key_facts,
        expected=question.expected,
        answer=text,
        correct=is_correct(text, question.key_facts),
    )
