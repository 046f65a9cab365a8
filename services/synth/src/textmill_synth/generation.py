"""Puts all requests on all passages to the strategies, many at a time, and hands the outcomes on in passage order.

A failed call is a dead letter for each of its rows; a dependency that is down ends the generation. With the fallback, a
question that the LLM couldn't answer well is asked a second time, of the passage itself, and counted a second time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise

from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Passage
from textmill.errors import TextmillError
from textmill_synth.finishing import Finishing
from textmill_synth.llm import CallFailed
from textmill_synth.strategies.base import Answer, DeadLetter, Outcome, Request, Source, Strategy
from textmill_synth.tally import Tally
from textmill_synth.tasks import all_of
from textmill_synth.topics import Topic

_BATCH = 64
_BATCH_S = 1.0
"""Outcomes are handed on so many passages or so many seconds at a time."""
_MOST_HELD = 10_000
"""Passages that are settled and wait for one before them: some KB each."""


@dataclass(frozen=True)
class Settled:
    """How one requested answer ended."""

    passage: Passage
    strategy: StrategyName
    topic: Topic
    outcome: Outcome


@dataclass(frozen=True)
class Generation:
    """``fallback`` answers the questions that another strategy failed at; None for no second try.

    ``left_out`` are pairs of passage and question that are not asked for, nor counted as requested, but by themselves.
    """

    strategies: Sequence[Strategy]
    fallback: Strategy | None
    finishing: Finishing
    tally: Tally
    window: int
    left_out: frozenset[tuple[str, str]] = frozenset()

    async def run(self, passages: Iterator[Passage]) -> AsyncIterator[list[list[Settled]]]:
        """The outcomes of one passage after the other, in batches; an empty list for one that nothing was asked of.

        At most ``window`` passages are unsettled at a time. One that takes long doesn't keep the others from starting.
        Raises what ends the job: ``DependencyDown``, ``JobFailed``.
        """
        in_hand, clock = _InHand(self.window), asyncio.get_running_loop().time
        ready: list[list[Settled]] = []
        handed_on_at = clock()
        try:
            async for source in _off_loop(sources(passages)):
                await in_hand.room()
                in_hand.add(self.settle_source(source))
                ready += in_hand.settled_first()
                if len(in_hand) >= _MOST_HELD:
                    ready.append(await in_hand.first())
                if len(ready) >= _BATCH or (ready and clock() - handed_on_at >= _BATCH_S):
                    yield ready
                    ready, handed_on_at = [], clock()
            while len(in_hand):
                ready.append(await in_hand.first())
                if len(ready) >= _BATCH or clock() - handed_on_at >= _BATCH_S:
                    yield ready
                    ready, handed_on_at = [], clock()
            yield ready
        finally:
            await in_hand.drop()

    async def settle_source(self, source: Source) -> list[Settled]:
        settled = await self._settle_all(source, [s for s in self.strategies if not s.after_others])
        later = [s for s in self.strategies if s.after_others]
        if later:
            accepted = [s.outcome for s in settled if isinstance(s.outcome, Answer)]
            settled += await self._settle_all(replace(source, accepted=accepted), later)
        return self._followed_up(source.passage, settled)

    async def _settle_all(self, source: Source, strategies: Sequence[Strategy]) -> list[Settled]:
        asked = [(strategy, request) for strategy in strategies for request in strategy.plan(source)]
        if len(asked) == 1:
            return await self._settle(source, *asked[0])
        return list(chain(*await all_of(self._settle(source, strategy, request) for strategy, request in asked)))

    async def _settle(self, source: Source, strategy: Strategy, request: Request) -> list[Settled]:
        """One outcome for each row of the request, then those of the rows that followed from them."""
        wanted = [t for t in request.topics if (source.passage.passage_id, t.question_id) not in self.left_out]
        self.tally.left_out[strategy.name] += len(request.topics) - len(wanted)
        if not wanted:
            return []
        self.tally.requested[strategy.name] += len(wanted)
        outcomes: Sequence[Outcome]
        try:
            outcomes = await strategy.settle(source, request)
        except CallFailed as exc:
            outcomes = [DeadLetter(exc.kind, str(exc))] * len(request.topics)
        if len(outcomes) != len(request.topics):
            raise TextmillError(f"{strategy.name} settled {len(outcomes)} of {len(request.topics)} rows: a bug in it")
        rows = [(t, outcome) for t, outcome in zip(request.topics, outcomes, strict=True) if t in wanted]
        if len(rows) == 1:
            return await self._finish(source, strategy, *rows[0])
        return list(chain(*await all_of(self._finish(source, strategy, topic, outcome) for topic, outcome in rows)))

    async def _finish(self, source: Source, strategy: Strategy, topic: Topic, outcome: Outcome) -> list[Settled]:
        outcomes: Sequence[Outcome] = [outcome]
        if isinstance(outcome, Answer):
            outcomes = await self.finishing.finish(source.passage, strategy.name, outcome)
            self.tally.requested[strategy.name] += len(outcomes) - 1
        settled = [Settled(source.passage, strategy.name, topic, o) for o in outcomes]
        if isinstance(outcomes[0], Answer) or not self._may_fall_back(strategy, topic):
            return settled
        assert self.fallback is not None
        return settled + await self._settle(source, self.fallback, Request([topic]))

    def _followed_up(self, passage: Passage, settled: list[Settled]) -> list[Settled]:
        """The same outcomes; the answers with questions that follow up on one another."""
        answers = [s.outcome for s in settled if isinstance(s.outcome, Answer)]
        if self.finishing.asker is None or not answers:
            return settled
        followed = iter(self.finishing.asker.follow_up(passage, answers))
        return [replace(s, outcome=next(followed)) if isinstance(s.outcome, Answer) else s for s in settled]

    def _may_fall_back(self, strategy: Strategy, topic: Topic) -> bool:
        """What can't be asked (a flaw) or has no question yet would fail again in the same way."""
        return self.fallback not in (None, strategy) and topic.flaw is None and bool(topic.ask)


class _InHand:
    """Passages that are being settled or wait for one before them. An error of any ends the waiting for all."""

    def __init__(self, window: int) -> None:
        self._tasks: deque[asyncio.Task[list[Settled]]] = deque()
        self._free = asyncio.Semaphore(window)
        self._one_ended = asyncio.Event()
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    async def room(self) -> None:
        """Wait until one more may be settled."""
        await self._free.acquire()
        self._raise_if_broken()

    def add(self, work: Coroutine[None, None, list[Settled]]) -> None:
        self._tasks.append(asyncio.create_task(work))
        self._tasks[-1].add_done_callback(self._note)

    def settled_first(self) -> list[list[Settled]]:
        """All that are settled, up to the first that isn't."""
        found = []
        while self._tasks and self._tasks[0].done():
            found.append(self._tasks.popleft().result())
        return found

    async def first(self) -> list[Settled]:
        while not self._tasks[0].done():
            self._one_ended.clear()
            await self._one_ended.wait()
            self._raise_if_broken()
        return self._tasks.popleft().result()

    async def drop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _note(self, task: asyncio.Task[list[Settled]]) -> None:
        self._free.release()
        self._one_ended.set()
        self._error = self._error or (None if task.cancelled() else task.exception())

    def _raise_if_broken(self) -> None:
        if self._error:
            raise self._error


def sources(passages: Iterable[Passage]) -> Iterator[Source]:
    """Each passage with the one that follows it in its document."""
    for passage, following in pairwise(chain(passages, [None])):
        assert passage is not None
        yield Source(passage, following if following and _adjoin(passage, following) else None)


async def _off_loop(items: Iterator[Source]) -> AsyncIterator[Source]:
    """Read ahead in batches on a thread: the store's calls block."""
    while batch := await asyncio.to_thread(lambda: list(islice(items, _BATCH))):
        for item in batch:
            yield item


def _adjoin(passage: Passage, following: Passage) -> bool:
    return following.document_id == passage.document_id and following.index == passage.index + 1
