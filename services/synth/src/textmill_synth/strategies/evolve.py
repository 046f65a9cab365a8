"""Accepted questions made into deeper or wider ones about the same passage (after Evol-Instruct, Xu et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language
from textmill_synth.ladder import Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import Answer, Rejection, Request, Settlement, Source
from textmill_synth.strategies.grounded import Ground, settle_pair
from textmill_synth.strategies.pairs import TEXTS_A_PAIR
from textmill_synth.topics import Topic

Evolution = Literal["deeper", "wider"]
_SHAPE = Shape(Pair, texts_each=TEXTS_A_PAIR, splits=False)


@dataclass(frozen=True)
class Evolve:
    """One row and one call for each accepted answer of the other strategies, and each way of evolving.

    "deeper" asks for why, how or under which condition; "wider" for something else that the passage says besides.
    """

    ladder: Ladder
    prompts: dict[Language, Prompt]
    evolutions: Sequence[Evolution]
    name: ClassVar[Literal["evolve"]] = "evolve"
    after_others: ClassVar[bool] = True

    def plan(self, source: Source) -> Sequence[Request]:
        plain = [a for a in source.accepted if a.topic.ask and not (a.before or a.between or a.more_evidence)]
        return [
            Request([Topic(f"{answer.topic.question_id}-{evolution}")], builds_on=answer)
            for answer in _each_question_once(plain)
            for evolution in self.evolutions
        ]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, (topic,), known = source.passage, request.topics, request.builds_on
        assert known is not None
        prompt = self.prompts[passage.language]
        found = await self.ladder.ask(
            self.name,
            passage,
            prompt,
            _SHAPE,
            shown=passage.text,
            question=known.topic.ask[0].question,
            answer=known.text,
            evolution=topic.question_id.rpartition("-")[2],
        )
        if isinstance(found, Rejection):
            return [found]
        return [settle_pair(Ground(passage, prompt.instructions, passage.text), topic, found[0])]


def _each_question_once(answers: Sequence[Answer]) -> Sequence[Answer]:
    """The first answer to each question: its variants would evolve into the same."""
    firsts: dict[str, Answer] = {}
    for answer in answers:
        firsts.setdefault(answer.topic.question_id, answer)
    return list(firsts.values())
