"""Logged conversations whose answer somebody approved or corrected, word for word. No LLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.traffic import parse_transcript
from textmill_synth.checks import Finding
from textmill_synth.strategies.base import Answer, Request, Settlement, Source, rejected
from textmill_synth.topics import Phrasing, Topic


@dataclass(frozen=True)
class Logged:
    """Each passage is a transcript (``contracts.traffic``): its last turn is the answer, the one before the question.

    Any other passage is rejected.
    """

    name: ClassVar[Literal["logged"]] = "logged"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        turns = parse_transcript(source.passage.text)
        if [turn.role for turn in turns[-2:]] != ["user", "assistant"]:
            detail = "the passage is no logged conversation that ends with a question and its answer"
            return [Request([Topic("logged", flaw=Finding("format", detail))])]
        asked = Phrasing("logged", turns[-2].content, history=turns[:-2])
        return [Request([Topic("logged", (asked,))])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        text = source.passage.text
        return [_answered(text, topic) for topic in request.topics]


def _answered(text: str, topic: Topic) -> Settlement:
    if topic.flaw:
        return rejected(topic.flaw)
    answer = parse_transcript(text)[-1].content
    return Answer(topic, answer, (text.rindex(answer), len(text)))
