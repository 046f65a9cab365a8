"""New tasks about the passage in the manner of the owner's examples (after Self-Instruct, Wang et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import SeedTask
from textmill_synth.ladder import Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import Rejection, Request, Settlement, Source
from textmill_synth.strategies.grounded import Ground, rejected_all, settle_pairs
from textmill_synth.strategies.pairs import TEXTS_A_PAIR
from textmill_synth.topics import Topic

_SEEDS_SHOWN = 3


@dataclass(frozen=True)
class SelfInstruct:
    """``count`` tasks a passage, by one call that shows some examples in its language, other ones for each passage.

    Nothing is asked of a passage in whose language there is no example.
    """

    ladder: Ladder
    prompts: dict[Language, Prompt]
    seeds: Sequence[SeedTask]
    count: int
    name: ClassVar[Literal["self_instruct"]] = "self_instruct"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        if not self._seeds(source.passage):
            return []
        return [Request([Topic(f"task-{number}") for number in range(1, self.count + 1)])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, topics = source.passage, request.topics
        prompt, shape = self.prompts[passage.language], Shape(Pair, len(topics), TEXTS_A_PAIR)
        seeds = self._seeds(passage)
        found = await self.ladder.ask(
            self.name, passage, prompt, shape, shown=passage.text, heading=passage.heading or "", seeds=seeds
        )
        if isinstance(found, Rejection):
            return rejected_all(found, topics)
        examples = "\n".join(f"{seed.instruction}\n{seed.answer}" for seed in seeds)
        ground = Ground(passage, f"{prompt.instructions}\n{examples}", passage.text)
        return settle_pairs(ground, topics, found, asks=False)

    def _seeds(self, passage: Passage) -> Sequence[SeedTask]:
        fitting = [seed for seed in self.seeds if seed.language == passage.language]
        first = passage.index * _SEEDS_SHOWN
        return [fitting[(first + n) % len(fitting)] for n in range(min(_SEEDS_SHOWN, len(fitting)))]
