"""The LLM writes a question that takes two neighbouring passages to answer, and quotes from each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill_synth.checks import Finding
from textmill_synth.evidence import evidence_missing, locate_evidence
from textmill_synth.grounding import GROUNDING_CHECKS
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Item, Text
from textmill_synth.roles import swapped
from textmill_synth.strategies.base import (
    Answer,
    Quotation,
    Rejection,
    Request,
    Settlement,
    Source,
    rejected,
)
from textmill_synth.strategies.grounded import Ground
from textmill_synth.topics import Phrasing, Topic


class Bridging(Item):
    question: Text
    answer: Text
    first_evidence: Text
    second_evidence: Text


_SHAPE = Shape(Bridging, texts_each=4, splits=False)


_CHECKS = tuple(check for check in GROUNDING_CHECKS if check is not swapped)
"""An answer that joins facts of two places puts names together that stand together in neither."""


@dataclass(frozen=True)
class Bridge:
    """One question for each two passages that adjoin in a document, and so are on the same side of the split."""

    ladder: Ladder
    prompts: dict[Language, Prompt]
    name: ClassVar[Literal["bridge"]] = "bridge"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic("bridge")])] if source.following else []

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, following = source.passage, source.following
        assert following is not None
        prompt = self.prompts[passage.language]
        found = await self.ladder.ask(self.name, passage, prompt, _SHAPE, shown=passage.text, following=following.text)
        if isinstance(found, Rejection):
            return [found]
        return [_checked(request.topics[0], passage, following, prompt, found[0])]


def _checked(topic: Topic, passage: Passage, following: Passage, prompt: Prompt, found: Found[Bridging]) -> Settlement:
    item = found.item
    if isinstance(item, Finding):
        return rejected(item, found.prompted)
    first = locate_evidence(item.first_evidence, passage.text)
    second = locate_evidence(item.second_evidence, following.text)
    if first is None or second is None:
        missing = item.first_evidence if first is None else item.second_evidence
        return rejected(evidence_missing(missing), found.prompted)
    ground = Ground(passage, prompt.instructions, f"{passage.text}\n\n{following.text}")
    question, answer = item.question.strip(), item.answer.strip()
    finding = ground.question_finding(question) or ground.answer_finding(question, answer, checks=_CHECKS)
    if finding:
        return rejected(finding, found.prompted)
    asked = replace(topic, ask=(Phrasing("written", question),))
    return Answer(asked, answer, first, found.prompted, more_evidence=(Quotation(following, second),))
