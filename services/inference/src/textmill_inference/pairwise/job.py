"""Runs a comparison as a job: asks all models, pairs their answers, and has the judge look, if there is one.

Each answer and each look of the judge is stored as soon as it is there; an attempt that takes over asks for the rest.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from textmill.contracts.base import content_id
from textmill.contracts.jobs import CompareJob, Output
from textmill.contracts.loadoptions import KeyFrom
from textmill.contracts.pairwise import (
    ComparedPrompt,
    CompareJudge,
    ComparisonManifest,
    Judgement,
    ModelAnswer,
    Pair,
    Side,
)
from textmill.store import ObjectStore
from textmill.worker import JobContext
from textmill_inference.pairwise.asking import ChatEndpoint, each
from textmill_inference.pairwise.judge import judge_messages, read_verdict
from textmill_inference.pairwise.prompts import prompts_of
from textmill_inference.pairwise.stored import Setup, answer_key, judgement_key, manifest_key, prefix_of

T = TypeVar("T")
KeyOf = Callable[[KeyFrom], str]
"""The key that lies there. Raises ``BadRequest`` where none does."""


class Comparer:
    """Handles ``CompareJob``. ``key`` goes to our own gateway only; ``key_of`` finds the judge's."""

    def __init__(self, gateway_url: str, key: str, key_of: KeyOf) -> None:
        self._gateway_url, self._key, self._key_of = gateway_url, key, key_of

    def check_job(self, job: CompareJob) -> None:
        """Raises ``BadRequest`` for a judge that can't be asked."""
        if job.judge is not None:
            self._judge_endpoint(job.judge)

    def __call__(self, job: CompareJob, ctx: JobContext) -> Output:
        setup = _setup(job, ctx.store)
        asking = _Asking(job, setup, ctx)
        _run(asking.ask_all(ChatEndpoint(self._gateway_url, self._key)), ctx)
        sides = asking.sides()
        pairs, same, failed = _pairs(sides, setup.salt)
        judged = 0
        if job.judge is not None:
            judging = _Judging(job.judge, job.comparison_id, {s.prompt.prompt_id: s for s in sides}, ctx)
            judged = _run(judging.judge_all(self._judge_endpoint(job.judge), pairs, job.concurrency), ctx)
        prefix = f"{prefix_of(job.comparison_id)}attempt-{ctx.scratch.rstrip('/').rpartition('/')[2]}/"
        manifest = ComparisonManifest(
            comparison_id=job.comparison_id,
            models=job.models,
            prompts=len(sides),
            pairs=len(pairs),
            same=same,
            failed=failed,
            sides_key=f"{prefix}sides.jsonl",
            pairs_key=f"{prefix}pairs.jsonl",
            salt=setup.salt,
            resamples=job.resamples,
            seed=job.seed,
            judge=job.judge,
            judged=judged,
        )
        ctx.store.put_stream(manifest.sides_key, (side.to_json() + b"\n" for side in sides))
        ctx.store.put_stream(manifest.pairs_key, (pair.to_json() + b"\n" for pair in pairs))
        return Output(manifest_key=manifest_key(job.comparison_id), manifest=manifest.model_dump(mode="json"))

    def _judge_endpoint(self, judge: CompareJudge) -> ChatEndpoint:
        """Our own key goes nowhere else."""
        if judge.url is None:
            return ChatEndpoint(self._gateway_url, self._key_of(judge.key_from) if judge.key_from else self._key)
        return ChatEndpoint(judge.url, self._key_of(judge.key_from) if judge.key_from else "")


def _setup(job: CompareJob, store: ObjectStore) -> Setup:
    """Prompts and salt of the first attempt: the traffic log may be another one by now."""
    key = f"{prefix_of(job.comparison_id)}setup.json"
    if not store.exists(key):
        prompts = prompts_of(job, store)
        setup = Setup(comparison_id=job.comparison_id, salt=secrets.token_hex(16), prompts=prompts)
        store.create(key, setup.to_json())
    return Setup.model_validate_json(store.get(key))


class _Asking:
    def __init__(self, job: CompareJob, setup: Setup, ctx: JobContext) -> None:
        self._job, self._setup, self._ctx = job, setup, ctx
        self._answers: dict[tuple[str, str], ModelAnswer] = {}
        self._total = len(setup.prompts) * len(job.models)

    async def ask_all(self, endpoint: ChatEndpoint) -> None:
        """The models take turns, so that whatever slows the machine down for a while slows all of them."""
        wanted = [(prompt, model) for prompt in self._setup.prompts for model in self._job.models]

        async def work(item: tuple[ComparedPrompt, str]) -> None:
            prompt, model = item
            self._answers[prompt.prompt_id, model] = await self._answer(endpoint, prompt, model)
            self._ctx.progress("asking", len(self._answers), self._total, "answers")

        self._ctx.progress("asking", 0, self._total, "answers")
        async with endpoint:
            await each(wanted, work, self._job.concurrency, self._ctx.stopping)

    def sides(self) -> list[Side]:
        return [
            Side(prompt=prompt, answers=[self._answers[prompt.prompt_id, model] for model in self._job.models])
            for prompt in self._setup.prompts
        ]

    async def _answer(self, endpoint: ChatEndpoint, prompt: ComparedPrompt, model: str) -> ModelAnswer:
        """The stored one, or a new one, stored."""
        job, store = self._job, self._ctx.store
        key = answer_key(job.comparison_id, prompt.prompt_id, model, str(job.max_tokens), str(job.temperature))
        if await asyncio.to_thread(store.exists, key):
            return ModelAnswer.model_validate_json(await asyncio.to_thread(store.get, key))
        said = await endpoint.ask(model, prompt.messages, job.max_tokens, job.temperature)
        answer = ModelAnswer(
            prompt_id=prompt.prompt_id,
            model=model,
            text=said.text,
            trouble=said.trouble,
            finish_reason=said.finish_reason,
            seconds=said.seconds,
        )
        await asyncio.to_thread(store.create, key, answer.to_json())
        return answer


class _Judging:
    def __init__(self, judge: CompareJudge, comparison_id: str, sides: Mapping[str, Side], ctx: JobContext) -> None:
        self._judge, self._comparison_id, self._sides, self._ctx = judge, comparison_id, sides, ctx
        self._done = 0

    async def judge_all(self, endpoint: ChatEndpoint, pairs: Sequence[Pair], at_once: int) -> int:
        """How many looks there are: two a pair."""
        looks = [(pair, order) for pair in pairs for order in (0, 1)]

        async def work(item: tuple[Pair, int]) -> None:
            await self._look(endpoint, *item)
            self._done += 1
            self._ctx.progress("judging", self._done, len(looks), "looks")

        self._ctx.progress("judging", 0, len(looks), "looks")
        async with endpoint:
            await each(looks, work, at_once, self._ctx.stopping)
        return len(looks)

    async def _look(self, endpoint: ChatEndpoint, pair: Pair, order: int) -> None:
        store, key = self._ctx.store, judgement_key(self._comparison_id, pair.pair_id, order)
        if await asyncio.to_thread(store.exists, key):
            return
        left, right = (pair.first, pair.second) if order == 0 else (pair.second, pair.first)
        side = self._sides[pair.prompt_id]
        texts = {answer.model: answer.text for answer in side.answers}
        messages = judge_messages(self._judge, side.prompt, texts[left], texts[right])
        said = await endpoint.ask(self._judge.model, messages, self._judge.max_tokens, 0.0)
        judgement = Judgement(
            pair_id=pair.pair_id,
            left=left,
            right=right,
            choice=read_verdict(said.text),
            said=said.text or said.trouble or "",
        )
        await asyncio.to_thread(store.create, key, judgement.to_json())


def _pairs(sides: Sequence[Side], salt: str) -> tuple[list[Pair], int, int]:
    """Pairs to vote on, and how many were left out since the answers are the same, or one is missing."""
    pairs: list[Pair] = []
    same = failed = 0
    for prompt_id, first, second in _all_pairs(sides):
        if first.trouble or second.trouble:
            failed += 1
        elif first.text.strip() == second.text.strip():
            same += 1
        else:
            pair_id = content_id("pr", salt, prompt_id, first.model, second.model)
            pairs.append(Pair(pair_id=pair_id, prompt_id=prompt_id, first=first.model, second=second.model))
    return pairs, same, failed


def _all_pairs(sides: Sequence[Side]) -> Iterator[tuple[str, ModelAnswer, ModelAnswer]]:
    for side in sides:
        for first, second in combinations(side.answers, 2):
            yield side.prompt.prompt_id, first, second


def _run(work: Coroutine[None, None, T], ctx: JobContext) -> T:
    found = asyncio.run(work)
    ctx.raise_if_stopped()
    return found
