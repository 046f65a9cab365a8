"""The order and the pace of a generation: passages come out in order, and none keeps the others waiting."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from scripted import passages

from textmill.contracts.documents import Passage
from textmill.contracts.synthesis import SynthOptions
from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_synth import generation as module
from textmill_synth.assembly import build_strategy
from textmill_synth.finishing import Finishing
from textmill_synth.generation import Generation, Settled, sources
from textmill_synth.ladder import Ladder, RungTally
from textmill_synth.ledger import Ledger
from textmill_synth.llm import ChatRequest, Completion
from textmill_synth.strategies.base import Generator
from textmill_synth.tally import Tally

OPTIONS = SynthOptions(strategies=("summary",))
SAID = json.dumps({"content": "Lamp", "summary": "The lamp stands on a quay."})


@dataclass
class Paced:
    """Answers when ``wait``, which is told the number of the call, is over."""

    wait: Callable[[int], Awaitable[None]]
    started: int = 0
    open: set[int] = field(default_factory=set)
    most_open: int = 0

    async def complete(self, request: ChatRequest) -> Completion:
        number = self.started
        self.started += 1
        self.open.add(number)
        self.most_open = max(self.most_open, len(self.open))
        try:
            await self.wait(number)
        finally:
            self.open.discard(number)
        return Completion(SAID, "stop", 1, 1)


def lamps(count: int) -> list[Passage]:
    return passages(*(f"Lamp {n} stands on a quay." for n in range(count)))


async def run(llm: Paced, on: Iterator[Passage], window: int = 4) -> list[list[Settled]]:
    async with asyncio.timeout(30), Ledger(MemoryStore(), llm) as ledger:
        ladder = Ladder(Generator(ledger, "m", 0.0, 96, "json"), RungTally())
        generation = Generation([build_strategy("summary", OPTIONS, ladder)], None, Finishing(), Tally(), window)
        return [outcomes async for batch in generation.run(on) for outcomes in batch]


def test_a_straggler_at_the_head_keeps_nobody_waiting() -> None:
    async def work() -> list[list[Settled]]:
        others_done = asyncio.Event()

        async def wait(number: int) -> None:
            if number == 0:
                await others_done.wait()
            elif number == 199:
                others_done.set()

        return await run(Paced(wait), iter(lamps(200)))

    settled = asyncio.run(work())
    assert [s.passage.index for outcomes in settled for s in outcomes] == list(range(200))


def test_no_more_than_the_window_is_unsettled() -> None:
    async def wait(number: int) -> None:
        await asyncio.sleep(0.001 * (number % 3))

    llm = Paced(wait)
    asyncio.run(run(llm, iter(lamps(60)), window=5))
    assert llm.most_open == 5
    assert llm.started == 60


def test_what_waits_for_the_head_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_HELD", 20)

    async def work() -> int:
        never = asyncio.Event()

        async def wait(number: int) -> None:
            if number == 0:
                await never.wait()

        llm = Paced(wait)
        task = asyncio.create_task(run(llm, iter(lamps(100))))
        while llm.started < 20:
            await asyncio.sleep(0)
        for _ in range(1_000):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert llm.open == set()
        return llm.started

    assert asyncio.run(work()) == 20


def test_what_ends_the_job_ends_all_that_is_in_hand() -> None:
    async def wait(number: int) -> None:
        if number == 3:
            raise DependencyDown("planted")
        await asyncio.sleep(3600)

    llm = Paced(wait)

    async def work() -> None:
        with pytest.raises(DependencyDown, match="planted"):
            await run(llm, iter(lamps(50)), window=8)
        assert llm.open == set()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())


def test_a_passage_knows_the_next_of_its_document_alone() -> None:
    first, second, third = lamps(3)
    other = passages("Another document.")[0]
    found = list(sources([first, second, other, third]))
    assert [s.following for s in found] == [second, None, None, None]
    assert list(sources([])) == []
