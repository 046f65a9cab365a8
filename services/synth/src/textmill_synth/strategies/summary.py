"""The LLM gives the passage a title and a summary; the questions ask for the title, the summary answers them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.grounding import ALL_CHECKS
from textmill_synth.llm import Completion
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Summarised, TitledSummary, json_summary, text_summary
from textmill_synth.strategies.base import Answer, Generator, Rejection
from textmill_synth.topics import Topic, titled_topic

MAX_TITLE_CHARACTERS = 80


@dataclass(frozen=True)
class Summary:
    """One answer a passage, in every language that has a prompt. Its evidence is the whole passage."""

    generator: Generator
    prompts: dict[Language, Prompt]
    name: ClassVar[Literal["summary"]] = "summary"

    def topics(self, passage: Passage) -> Sequence[Topic]:
        return [Topic("summary")]

    async def settle(self, passage: Passage, topic: Topic) -> Answer | Rejection:
        prompt, form = self.prompts[passage.language], self.generator.form
        prompted = await self.generator.ask(
            passage, prompt, Summarised.model_json_schema(), shown=passage.text, form=form
        )
        completion = prompted.call.completion
        parsed = self._parse(completion)
        finding = parsed if isinstance(parsed, Finding) else self._check(passage, prompt, parsed, completion)
        if finding:
            return Rejection(finding.reason, finding.detail, completion.text, prompted)
        assert isinstance(parsed, TitledSummary)
        topic = titled_topic(topic.question_id, parsed.title, passage.language)
        return Answer(topic, parsed.summary, (0, len(passage.text)), prompted)

    def _parse(self, completion: Completion) -> TitledSummary | Finding:
        parsed = json_summary(completion.text) if self.generator.form == "json" else text_summary(completion.text)
        if isinstance(parsed, Finding) and completion.finish_reason == "length":
            return Finding("truncated", f"the token limit was reached before the form was whole: {parsed.detail}")
        return parsed

    @staticmethod
    def _check(passage: Passage, prompt: Prompt, parsed: TitledSummary, completion: Completion) -> Finding | None:
        """Summary and title are checked alike; a title is no sentence, so it gets a full stop for the check."""
        stop = "。" if passage.language == "zh" else "."
        for text, limit in ((parsed.summary, len(passage.text)), (parsed.title + stop, MAX_TITLE_CHARACTERS)):
            candidate = Candidate(
                answer=text,
                question="",
                passage=f"{passage.heading or ''}\n\n{passage.text}",
                language=passage.language,
                finish_reason=completion.finish_reason,
                instructions=prompt.instructions,
                max_characters=limit,
            )
            finding = first_finding(candidate, ALL_CHECKS)
            if finding:
                return finding
        return None
