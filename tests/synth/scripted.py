"""An ``Llm`` in the test's own process that says what a function says, and a generation around it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Language, Passage, Span
from textmill.contracts.synthesis import SynthOptions
from textmill.store import MemoryStore
from textmill_synth.assembly import build_strategy
from textmill_synth.finishing import Finishing
from textmill_synth.generation import Generation, Settled
from textmill_synth.ladder import Ladder, RungTally
from textmill_synth.ledger import Ledger
from textmill_synth.llm import CallFailed, ChatRequest, Completion, FaultKind
from textmill_synth.strategies.base import Answer, DeadLetter, Generator, Rejection, ResponseForm
from textmill_synth.strategies.passage import Extractive
from textmill_synth.tally import Tally


@dataclass(frozen=True)
class Says:
    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Fails:
    kind: FaultKind = "llm_timeout"


Reply = str | Says | Fails


@dataclass
class Scripted:
    """``reply`` is asked with the last user message."""

    reply: Callable[[str], Reply]
    requests: list[ChatRequest] = field(default_factory=list)

    async def complete(self, request: ChatRequest) -> Completion:
        self.requests.append(request)
        reply = self.reply(request.messages[-1].content)
        if isinstance(reply, Fails):
            raise CallFailed(reply.kind, "planted")
        says = Says(reply) if isinstance(reply, str) else reply
        return Completion(says.text, says.finish_reason, 100, 10)


def in_turn(*replies: Reply) -> Callable[[str], Reply]:
    """The replies one after the other; the last again and again."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def passages(*texts: str, language: Language = "en", heading: str | None = None) -> list[Passage]:
    """Passages of one document."""
    found, at = [], 0
    for index, text in enumerate(texts):
        span = Span(char_start=at, char_end=at + len(text), byte_start=at, byte_end=at + len(text.encode()))
        passage = Passage(
            passage_id=content_id("pas", text, str(index)),
            document_id=content_id("doc", *texts),
            document_sha256="ab" * 32,
            index=index,
            text=text,
            language=language,
            heading=heading,
            span=span,
            exact=True,
        )
        found.append(passage)
        at += len(text) + 2
    return found


@dataclass
class Run:
    settled: list[Settled]
    tally: Tally
    rungs: RungTally
    requests: Sequence[ChatRequest]

    def answers(self, strategy: StrategyName | None = None) -> list[Answer]:
        of = [s for s in self.settled if strategy in (None, s.strategy)]
        return [s.outcome for s in of if isinstance(s.outcome, Answer)]

    def rejections(self) -> list[Rejection]:
        return [s.outcome for s in self.settled if isinstance(s.outcome, Rejection)]

    def dead(self) -> list[DeadLetter]:
        return [s.outcome for s in self.settled if isinstance(s.outcome, DeadLetter)]

    def reasons(self) -> Counter[str]:
        return Counter(r.reason for r in self.rejections())


def generate(
    options: SynthOptions,
    on: Sequence[Passage],
    reply: Callable[[str], Reply],
    form: ResponseForm = "json",
    finishing: Callable[[Ladder], Finishing] = lambda ladder: Finishing(),
    left_out: frozenset[tuple[str, str]] = frozenset(),
) -> Run:
    llm, tally, rungs = Scripted(reply), Tally(), RungTally()

    async def work() -> list[Settled]:
        async with Ledger(MemoryStore(), llm) as ledger:
            ladder = Ladder(Generator(ledger, "a-model", 0.0, 96, form), rungs)
            strategies = [build_strategy(name, options, ladder) for name in options.strategies]
            fallback = Extractive(options.question_sets) if options.extractive_fallback else None
            generation = Generation(strategies, fallback, finishing(ladder), tally, 4, left_out)
            return [s async for batch in generation.run(iter(on)) for outcomes in batch for s in outcomes]

    return Run(asyncio.run(work()), tally, rungs, llm.requests)
