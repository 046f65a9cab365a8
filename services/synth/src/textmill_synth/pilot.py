"""Puts the strategies to a few passages, and measures what each passage took. Knows no forecasts and no stores."""

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from random import Random

from textmill.contracts.documents import Passage
from textmill_synth.budget import Charge
from textmill_synth.forecast import Pace
from textmill_synth.generation import Generation, Settled
from textmill_synth.ledger import Call
from textmill_synth.llm import ChatRequest, Completion, Fault
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.strategies.base import Answer, DeadLetter, Source, Strategy
from textmill_synth.tally import Tally
from textmill_synth.tasks import all_of


@dataclass(frozen=True)
class Load:
    """What is asked of a passage, before anything is asked: what its cost can be told from."""

    requests: int = 0
    topics: int = 0
    characters: int = 0
    """Of the passage, once for each request."""

    def __add__(self, other: "Load") -> "Load":
        return Load(self.requests + other.requests, self.topics + other.topics, self.characters + other.characters)


def load_of(source: Source, strategies: Sequence[Strategy], left_out: frozenset[tuple[str, str]]) -> Load:
    """Strategies that build on others' answers can't be planned yet; what they ask follows from the rest."""
    passage, total = source.passage, Load()
    for strategy in strategies:
        for request in () if strategy.after_others else strategy.plan(source):
            topics = [t for t in request.topics if not t.flaw and (passage.passage_id, t.question_id) not in left_out]
            if topics:
                total += Load(1, len(topics), len(passage.text))
    return total


@dataclass(frozen=True)
class Survey:
    """The passages that something is asked of: their places in the corpus, and their loads summed."""

    places: "array[int]"
    total: Load


def survey(passages: Iterable[Passage], strategies: Sequence[Strategy], left_out: frozenset[tuple[str, str]]) -> Survey:
    """Reads the whole corpus; asks nothing."""
    places, total = array("q"), Load()
    for place, source in enumerate(_sources(passages)):
        load = load_of(source, strategies, left_out)
        if load.requests:
            places.append(place)
            total += load
    return Survey(places, total)


def chosen(places: Sequence[int], count: int, seed: int) -> list[int]:
    """``count`` of the places, one from each of as many equal parts, drawn by the seed: spread over the corpus."""
    draw, parts = Random(seed), min(count, len(places))
    bounds = [number * len(places) // parts for number in range(parts + 1)]
    return [places[draw.randrange(start, end)] for start, end in pairwise(bounds)]


def sources_at(passages: Iterable[Passage], places: Sequence[int]) -> list[Source]:
    wanted = set(places)
    upto = islice(_sources(passages), max(wanted) + 1)
    return [source for place, source in enumerate(upto) if place in wanted]


@dataclass
class Usage:
    """What the calls for one passage used, whether they were paid now or found in the ledger."""

    total: Charge = field(default_factory=Charge)


_USAGE: ContextVar[Usage | None] = ContextVar("usage", default=None)


def note_call(call: Call) -> None:
    """For ``Ledger.observe``: charges the call to the passage that it was made for."""
    usage = _USAGE.get()
    if usage is not None:
        usage.total += Charge(1, call.completion.prompt_tokens, call.completion.completion_tokens)


@dataclass
class Stopwatch:
    """Times the tries of an endpoint. ``started`` begins anew whenever it is set."""

    busy_s: float = 0.0
    answered: int = 0
    started: float = field(default_factory=time.monotonic)

    def wrap(self, endpoint: Endpoint) -> Endpoint:
        return _Timed(endpoint, self)

    def restart(self) -> None:
        self.busy_s, self.answered, self.started = 0.0, 0, time.monotonic()

    def pace(self) -> Pace:
        return Pace(self.answered, self.busy_s, time.monotonic() - self.started)


@dataclass(frozen=True)
class _Timed:
    endpoint: Endpoint
    watch: Stopwatch

    @property
    def url(self) -> str:
        return self.endpoint.url

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        began = time.monotonic()
        try:
            outcome = await self.endpoint.attempt(request, deadline_s)
        finally:
            self.watch.busy_s += time.monotonic() - began
        self.watch.answered += isinstance(outcome, Completion)
        return outcome


@dataclass(frozen=True)
class Tried:
    """One passage of the pilot: what was asked of it, what that used, and how it ended."""

    source: Source
    load: Load
    used: Charge
    settled: Sequence[Settled]

    @property
    def accepted(self) -> list[Answer]:
        return [s.outcome for s in self.settled if isinstance(s.outcome, Answer)]


async def fly(generation: Generation, sources: Sequence[Source]) -> list[Tried]:
    """All passages at once, and their outcomes into the generation's tally. Raises what ends the job."""
    tried = await all_of(_try(generation, source) for source in sources)
    for settled in chain.from_iterable(one.settled for one in tried):
        _count(settled, generation.tally)
    return tried


async def _try(generation: Generation, source: Source) -> Tried:
    usage = Usage()
    _USAGE.set(usage)
    settled = await generation.settle_source(source)
    return Tried(source, load_of(source, generation.strategies, generation.left_out), usage.total, settled)


def _count(settled: Settled, tally: Tally) -> None:
    if isinstance(settled.outcome, Answer):
        tally.accepted[settled.strategy] += 1
    elif isinstance(settled.outcome, DeadLetter):
        tally.dead_lettered[settled.strategy] += 1
    else:
        tally.rejected[settled.strategy, settled.outcome.reason] += 1


def _sources(passages: Iterable[Passage]) -> Iterator[Source]:
    for passage, following in pairwise(chain(passages, [None])):
        assert passage is not None
        if following is not None and (following.document_id, following.index) == (
            passage.document_id,
            passage.index + 1,
        ):
            yield Source(passage, following)
        else:
            yield Source(passage)
