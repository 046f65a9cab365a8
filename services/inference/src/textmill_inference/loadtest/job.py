"""Runs a load test as a job: hands the plan to the load generator's process and gathers what it reports."""

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO
from urllib.parse import urlsplit

from textmill.contracts.jobs import LoadtestJob, Output
from textmill.contracts.serving import LoadLevel, LoadtestReport
from textmill.errors import BadRequest, Transient
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_inference.evaluation.questions import held_out
from textmill_inference.loadtest.client import KEY_VARIABLE
from textmill_inference.loadtest.plan import LoadNews, LoadPlan

log = logging.getLogger(__name__)
_DEFAULT_PROMPTS = (
    "Explain in two sentences what a lighthouse is for.",
    "Name three things to check before a long bicycle ride, and say why.",
    "What is the difference between weather and climate?",
    "Write a short note that asks a neighbour to water the plants.",
)
_MOST_PROMPTS = 1_000


def loadtest_key(loadtest_id: str) -> str:
    return f"loadtests/{loadtest_id}/report.json"


class Loadtester:
    """Handles ``LoadtestJob``. ``key`` goes to our own gateway only, never to another target."""

    def __init__(self, gateway_url: str, key: str = "") -> None:
        self._gateway_url = gateway_url
        self._key = key

    def __call__(self, job: LoadtestJob, ctx: JobContext) -> Output:
        target = (job.target_url or self._gateway_url).rstrip("/")
        plan = LoadPlan(
            url=chat_url(target),
            model=job.model,
            messages=prompts_of(job, ctx.store),
            concurrencies=job.concurrencies,
            requests_per_level=job.requests_per_level,
            seconds_per_level=job.seconds_per_level,
            max_tokens=job.max_tokens,
            timeout_s=job.timeout_s,
        )
        levels = self._run(plan, self._key if job.target_url is None else "", ctx)
        report = LoadtestReport(loadtest_id=job.loadtest_id, target=target, model=job.model, levels=levels)
        return Output(manifest_key=loadtest_key(job.loadtest_id), manifest=report.model_dump(mode="json"))

    def _run(self, plan: LoadPlan, key: str, ctx: JobContext) -> list[LoadLevel]:
        levels: list[LoadLevel] = []
        with _generator(plan, key) as lines:
            while len(levels) < len(plan.concurrencies):
                ctx.raise_if_stopped()
                try:
                    line = lines.get(timeout=0.2)
                except queue.Empty:
                    continue
                if line is None:
                    raise Transient(
                        "the load generator ended before its last level; its error is in this service's log"
                    )
                news = LoadNews.model_validate_json(line)
                if news.level is not None:
                    levels.append(news.level)
                _tell(ctx, plan, len(levels), news)
        return levels


def chat_url(target: str) -> str:
    """``target`` may be a server's root or its OpenAI base URL, with ``/v1`` at the end."""
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadRequest(f"target_url {target!r} is no HTTP address; give one like http://127.0.0.1:8100")
    base = target.removesuffix("/v1")
    return f"{base}/v1/chat/completions"


def check_job(job: LoadtestJob) -> None:
    """Raises ``BadRequest``."""
    if job.target_url is not None:
        chat_url(job.target_url)


def prompts_of(job: LoadtestJob, store: ObjectStore) -> list[list[dict[str, str]]]:
    """The job's own prompts, else its dataset's held-out questions, else a few of ours."""
    if job.dataset_id is not None and not job.prompts:
        return [list(question.messages) for question in held_out(store, job.dataset_id, _MOST_PROMPTS)]
    return [[{"role": "user", "content": prompt}] for prompt in job.prompts or _DEFAULT_PROMPTS]


def _tell(ctx: JobContext, plan: LoadPlan, levels: int, news: LoadNews) -> None:
    if news.level is None:
        figures = {"requests": float(news.requests), "errors": float(news.errors)}
    else:
        figures = {"output_tokens_per_s": news.level.output_tokens_per_s}
    ctx.progress(f"{news.concurrency} concurrent", levels, len(plan.concurrencies), "levels", **figures)


@contextlib.contextmanager
def _generator(plan: LoadPlan, key: str) -> Iterator["queue.Queue[bytes | None]"]:
    """The load generator's process, and the lines it writes, None after the last. It is gone at the exit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "textmill_inference.loadtest.client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, KEY_VARIABLE: key},
    )
    lines: queue.Queue[bytes | None] = queue.Queue()
    assert process.stdin is not None
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, lines), name="loadclient", daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(plan.to_json())
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def _read(stdout: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    for line in stdout:
        lines.put(line)
    lines.put(None)
