"""The LLM writes questions about the passage, with their answers and the words that bear them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language
from textmill_synth.ladder import Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import Rejection, Request, Settlement, Source
from textmill_synth.strategies.grounded import Ground, rejected_all, settle_pairs
from textmill_synth.topics import Topic

TEXTS_A_PAIR = 3


@dataclass(frozen=True)
class Pairs:
    """``count`` pairs a passage, by one call. What comes short of that is rejected as missing."""

    ladder: Ladder
    prompts: dict[Language, Prompt]
    count: int
    name: ClassVar[Literal["pairs"]] = "pairs"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic(f"pair-{number}") for number in range(1, self.count + 1)])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, topics = source.passage, request.topics
        prompt, shape = self.prompts[passage.language], Shape(Pair, len(topics), TEXTS_A_PAIR)
        found = await self.ladder.ask(
            self.name, passage, prompt, shape, shown=passage.text, heading=passage.heading or ""
        )
        if isinstance(found, Rejection):
            return rejected_all(found, topics)
        return settle_pairs(Ground(passage, prompt.instructions, passage.text), topics, found)
