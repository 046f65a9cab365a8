"""The LLM gives the passage a title and a summary; the questions ask for the title, the summary answers them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language, Passage
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.grounding import ALL_CHECKS
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.llm import Completion
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Summarised, text_summary
from textmill_synth.strategies.base import Answer, Rejection, Request, Settlement, Source, rejected
from textmill_synth.topics import Topic, titled_topic

MAX_TITLE_CHARACTERS = 80


def read_summary(completion: Completion) -> Summarised | Finding:
    parsed = text_summary(completion.text)
    if isinstance(parsed, Finding) and completion.finish_reason == "length":
        return Finding("truncated", f"the token limit was reached before the form was whole: {parsed.detail}")
    return parsed


SUMMARY = Shape(Summarised, texts_each=2, read_text=read_summary, splits=False)


@dataclass(frozen=True)
class Summary:
    """One answer a passage, in every language that has a prompt. Its evidence is the whole passage."""

    ladder: Ladder
    prompts: dict[Language, Prompt]
    name: ClassVar[Literal["summary"]] = "summary"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic("summary")])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, topic = source.passage, request.topics[0]
        prompt = self.prompts[passage.language]
        found = await self.ladder.ask(self.name, passage, prompt, SUMMARY, shown=passage.text)
        if isinstance(found, Rejection):
            return [found]
        item = checked_summary(passage, prompt, found[0])
        if isinstance(item, Finding):
            return [rejected(item, found[0].prompted)]
        titled = titled_topic(topic.question_id, item.content, passage.language)
        return [Answer(titled, item.summary, (0, len(passage.text)), found[0].prompted)]


def checked_summary(passage: Passage, prompt: Prompt, found: Found[Summarised]) -> Summarised | Finding:
    """Summary and title are checked alike; a title is no sentence, so it gets a full stop for the check."""
    item = found.item
    if isinstance(item, Finding):
        return item
    stop = "。" if passage.language == "zh" else "."
    for text, limit in ((item.summary, len(passage.text)), (item.content + stop, MAX_TITLE_CHARACTERS)):
        candidate = Candidate(
            answer=text,
            question="",
            passage=f"{passage.heading or ''}\n\n{passage.text}",
            language=passage.language,
            finish_reason=found.prompted.call.completion.finish_reason,
            instructions=prompt.instructions,
            max_characters=limit,
        )
        finding = first_finding(candidate, ALL_CHECKS)
        if finding:
            return finding
    return item
