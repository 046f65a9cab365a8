"""The LLM writes a conversation about the passage; every reply in it must hold up against the passage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from textmill.contracts.datasets import Message
from textmill.contracts.documents import Language, Passage
from textmill_synth.checks import Finding
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import (
    Answer,
    Quotation,
    Rejection,
    Request,
    Settlement,
    Source,
    rejected,
)
from textmill_synth.strategies.grounded import Ground, settle_pair
from textmill_synth.strategies.pairs import TEXTS_A_PAIR
from textmill_synth.topics import Topic

_FEWEST_TURNS = 2


@dataclass(frozen=True)
class Conversation:
    """One conversation a passage, of ``turns`` questions with replies; one that breaks off may be shorter.

    Later questions may refer back. The last reply is the answer, those before it are its history.
    """

    ladder: Ladder
    prompts: dict[Language, Prompt]
    turns: int
    name: ClassVar[Literal["conversation"]] = "conversation"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic("conversation")])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage = source.passage
        prompt, shape = self.prompts[passage.language], Shape(Pair, self.turns, TEXTS_A_PAIR, splits=False)
        found = await self.ladder.ask(
            self.name, passage, prompt, shape, shown=passage.text, heading=passage.heading or ""
        )
        if isinstance(found, Rejection):
            return [found]
        return [_joined(request.topics[0], passage, Ground(passage, prompt.instructions, passage.text), found)]


def _joined(topic: Topic, passage: Passage, ground: Ground, found: Sequence[Found[Pair]]) -> Settlement:
    """All turns as one answer; what is wrong with one of them is wrong with the conversation."""
    if len(found) < _FEWEST_TURNS:
        return rejected(Finding("missing", f"{len(found)} turns are no conversation"), found[-1].prompted)
    turns: list[Answer] = []
    for turn in found:
        settled = settle_pair(ground, topic, turn)
        if isinstance(settled, Rejection):
            return replace(settled, detail=f"turn {len(turns) + 1}: {settled.detail}")
        turns.append(settled)
    *earlier, last = turns
    before = [message for turn in earlier for message in _messages(turn)]
    quotations = [Quotation(passage, turn.evidence) for turn in earlier]
    return replace(last, before=tuple(before), more_evidence=tuple(quotations))


def _messages(turn: Answer) -> Sequence[Message]:
    question = turn.topic.ask[0].question
    return Message(role="user", content=question), Message(role="assistant", content=turn.text)
