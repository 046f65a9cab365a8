"""The LLM answers questions about the passage it is shown, in one sentence, which must hold up against the passage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import QuestionSet
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.evidence import evidence_missing, locate_evidence
from textmill_synth.grounding import ALL_CHECKS, closest_sentence
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.llm import Completion
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Answered, Quoted
from textmill_synth.sentences import ends_complete, first_sentence, sentence_around
from textmill_synth.strategies.base import (
    Answer,
    Rejection,
    Request,
    Settlement,
    Source,
    Span,
    rejected,
    topics_of,
)
from textmill_synth.topics import Topic

MAX_ANSWER_CHARACTERS = 300


def read_sentence(completion: Completion) -> Answered | Finding:
    """A plain response, cut at its first sentence: small models ramble after it."""
    sentence = first_sentence(completion.text)
    if not sentence:
        return Finding("empty", "nothing was said")
    if ends_complete(sentence):
        return Answered(answer=sentence)
    if completion.finish_reason == "length":
        return Finding("truncated", "the token limit was reached before the first sentence ended")
    return Finding("truncated", f"no sentence end, the answer stops at {sentence[-20:]!r}")


_ANSWER: Shape[Answered] = Shape(Answered, read_text=read_sentence)
_QUOTED: Shape[Answered] = Shape(Quoted, texts_each=2)


@dataclass(frozen=True)
class QuestionAnswering:
    """Asks each topic once, in its first wording; the other wordings share the answer.

    In JSON the answer names its evidence. In text, and where the key is known, the evidence is the key's sentence, or
    the one that shares most with the answer.

    ``context`` "sentence" shows ``key_prompts`` with the one sentence that holds the key, where there is a key: a model
    of 135M parameters fails most questions when shown the whole passage. A capable one is better shown all of it.
    """

    ladder: Ladder
    prompts: dict[Language, Prompt]
    key_prompts: dict[Language, Prompt]
    question_sets: Sequence[QuestionSet]
    context: Literal["passage", "sentence"]
    name: ClassVar[Literal["qa"]] = "qa"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([topic]) for topic in topics_of(source.passage, self.question_sets)]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        return [await self._settle(source.passage, topic) for topic in request.topics]

    async def _settle(self, passage: Passage, topic: Topic) -> Settlement:
        if topic.flaw:
            return rejected(topic.flaw)
        prompt, shown = self.prompts[passage.language], passage.text
        shape = _ANSWER if self.ladder.generator.form == "text" else _QUOTED
        if topic.key and self.context == "sentence":
            prompt, shape = self.key_prompts[passage.language], _ANSWER
            shown = passage.text[slice(*sentence_around(passage.text, *topic.key))]
        question = topic.ask[0].question
        found = await self.ladder.ask(self.name, passage, prompt, shape, shown=shown, question=question)
        return found if isinstance(found, Rejection) else _checked(passage, topic, prompt, found[0])


def _checked(passage: Passage, topic: Topic, prompt: Prompt, found: Found[Answered]) -> Settlement:
    item, prompted = found.item, found.prompted
    if isinstance(item, Finding):
        return rejected(item, prompted)
    evidence: Span | None = None
    if isinstance(item, Quoted):
        evidence = locate_evidence(item.evidence, passage.text)
        if evidence is None:
            return rejected(evidence_missing(item.evidence), prompted)
    candidate = Candidate(
        answer=item.answer.strip(),
        question=topic.ask[0].question,
        passage=passage.text,
        language=passage.language,
        finish_reason=prompted.call.completion.finish_reason,
        key=passage.text[slice(*topic.key)] if topic.key else None,
        instructions=prompt.instructions,
        max_characters=MAX_ANSWER_CHARACTERS,
        evidence=evidence,
    )
    finding = first_finding(candidate, ALL_CHECKS)
    if finding:
        return rejected(finding, prompted)
    return Answer(topic, candidate.answer, evidence or _closest(passage, topic, candidate.answer), prompted)


def _closest(passage: Passage, topic: Topic, answer: str) -> Span:
    """The sentence with the key; without one, the sentence that shares most with the answer."""
    return sentence_around(passage.text, *topic.key) if topic.key else closest_sentence(answer, passage.text)
