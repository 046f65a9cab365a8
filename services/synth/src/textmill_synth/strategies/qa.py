"""The LLM answers questions about the passage it is shown, in one sentence, which must hold up against the passage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill.contracts.jobs import QuestionSet
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.grounding import ALL_CHECKS, closest_sentence
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Answered, json_answer
from textmill_synth.sentences import first_sentence, sentence_around
from textmill_synth.strategies.base import Answer, Generator, Prompted, Rejection
from textmill_synth.topics import Topic, owner_topics, subject_topic

MAX_ANSWER_CHARACTERS = 300


@dataclass(frozen=True)
class QuestionAnswering:
    """Asks each topic once, in its first wording; the other wordings share the answer.

    ``context`` "sentence" shows ``key_prompts`` with the one sentence that holds the key, where there is a key: a model
    of 135M parameters fails most questions when shown the whole passage. A capable one is better shown all of it.
    """

    generator: Generator
    prompts: dict[Language, Prompt]
    key_prompts: dict[Language, Prompt]
    question_sets: Sequence[QuestionSet]
    context: Literal["passage", "sentence"]
    name: ClassVar[Literal["qa"]] = "qa"

    def topics(self, passage: Passage) -> Sequence[Topic]:
        return owner_topics(passage, self.question_sets) if self.question_sets else [subject_topic(passage)]

    async def settle(self, passage: Passage, topic: Topic) -> Answer | Rejection:
        if topic.flaw:
            return Rejection(topic.flaw.reason, topic.flaw.detail)
        prompt, shown = self.prompts[passage.language], passage.text
        if topic.key and self.context == "sentence":
            prompt = self.key_prompts[passage.language]
            shown = passage.text[slice(*sentence_around(passage.text, *topic.key))]
        slots = {"question": topic.ask[0].question, "shown": shown, "form": self.generator.form}
        prompted = await self.generator.ask(passage, prompt, Answered.model_json_schema(), **slots)
        candidate = self._read(passage, topic, prompt, prompted)
        finding = candidate if isinstance(candidate, Finding) else first_finding(candidate, ALL_CHECKS)
        if finding:
            return Rejection(finding.reason, finding.detail, prompted.call.completion.text, prompted)
        assert isinstance(candidate, Candidate)
        return Answer(topic, candidate.answer, _evidence(passage, topic, candidate.answer), prompted)

    def _read(self, passage: Passage, topic: Topic, prompt: Prompt, prompted: Prompted) -> Candidate | Finding:
        """The answer in the response, cut at its first sentence: small models ramble after it."""
        completion = prompted.call.completion
        answer: str | Finding = completion.text
        if self.generator.form == "json":
            answer = json_answer(completion.text)
        if isinstance(answer, Finding):
            cut_off = completion.finish_reason == "length"
            return Finding("truncated", "the token limit was reached inside the JSON") if cut_off else answer
        return Candidate(
            answer=first_sentence(answer),
            question=topic.ask[0].question,
            passage=passage.text,
            language=passage.language,
            finish_reason=completion.finish_reason,
            key=passage.text[slice(*topic.key)] if topic.key else None,
            instructions=prompt.instructions,
            max_characters=MAX_ANSWER_CHARACTERS,
        )


def _evidence(passage: Passage, topic: Topic, answer: str) -> tuple[int, int]:
    """The sentence with the key; without one, the sentence that shares most with the answer."""
    return sentence_around(passage.text, *topic.key) if topic.key else closest_sentence(answer, passage.text)
