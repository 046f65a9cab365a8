"""Puts all topics of all passages to the strategies, many at a time, and hands the outcomes on in passage order.

A failed call is one dead letter; a dependency that is down ends the generation. With the fallback, a question that
the LLM couldn't answer well is asked a second time, of the passage itself, and counted a second time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Passage
from textmill_synth.llm import CallFailed
from textmill_synth.strategies.base import Answer, DeadLetter, Outcome, Strategy
from textmill_synth.tally import Tally
from textmill_synth.topics import Topic

_BATCH = 64


@dataclass(frozen=True)
class Settled:
    """How one requested answer ended."""

    passage: Passage
    strategy: StrategyName
    topic: Topic
    outcome: Outcome


@dataclass(frozen=True)
class Generation:
    """``fallback`` answers the questions that another strategy failed at; None for no second try."""

    strategies: Sequence[Strategy]
    fallback: Strategy | None
    tally: Tally
    window: int

    async def run(self, passages: Iterator[Passage]) -> AsyncIterator[list[Settled]]:
        """The outcomes of one passage after the other, empty for one that nothing was asked of.

        At most ``window`` passages are in hand. Raises what ends the job: ``DependencyDown``, ``JobFailed``.
        """
        in_hand: deque[asyncio.Task[list[Settled]]] = deque()
        try:
            async for passage in _off_loop(passages):
                in_hand.append(asyncio.create_task(self._settle_passage(passage)))
                if len(in_hand) >= self.window:
                    yield await in_hand.popleft()
            while in_hand:
                yield await in_hand.popleft()
        finally:
            for task in in_hand:
                task.cancel()
            await asyncio.gather(*in_hand, return_exceptions=True)

    async def _settle_passage(self, passage: Passage) -> list[Settled]:
        asked = [(strategy, topic) for strategy in self.strategies for topic in strategy.topics(passage)]
        tasks = [asyncio.create_task(self._settle(passage, strategy, topic)) for strategy, topic in asked]
        try:  # no TaskGroup: it would wrap what ends the job into an ExceptionGroup
            return [settled for outcomes in await asyncio.gather(*tasks) for settled in outcomes]
        finally:
            for task in tasks:
                task.cancel()

    async def _settle(self, passage: Passage, strategy: Strategy, topic: Topic) -> list[Settled]:
        self.tally.requested[strategy.name] += 1
        outcome: Outcome
        try:
            outcome = await strategy.settle(passage, topic)
        except CallFailed as exc:
            outcome = DeadLetter(exc.kind, str(exc))
        settled = [Settled(passage, strategy.name, topic, outcome)]
        if isinstance(outcome, Answer) or not self._may_fall_back(strategy, topic):
            return settled
        assert self.fallback is not None
        return settled + await self._settle(passage, self.fallback, topic)

    def _may_fall_back(self, strategy: Strategy, topic: Topic) -> bool:
        """What can't be asked (a flaw) or has no question yet would fail again in the same way."""
        return self.fallback not in (None, strategy) and topic.flaw is None and bool(topic.ask)


async def _off_loop(passages: Iterator[Passage]) -> AsyncIterator[Passage]:
    """Read ahead in batches on a thread: the store's calls block."""
    while batch := await asyncio.to_thread(lambda: list(islice(passages, _BATCH))):
        for passage in batch:
            yield passage
