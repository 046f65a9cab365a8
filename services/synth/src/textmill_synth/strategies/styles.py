"""Summaries of one passage in the owner's styles, e.g. "one sentence" or "for a ten-year-old": a question each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from textmill.contracts.documents import Language
from textmill_synth.checks import Finding
from textmill_synth.ladder import Ladder
from textmill_synth.prompts import Prompt
from textmill_synth.strategies.base import Answer, Rejection, Request, Settlement, Source, rejected
from textmill_synth.strategies.summary import SUMMARY, checked_summary
from textmill_synth.topics import Phrasing, Topic

_ASKED: dict[Language, Sequence[str]] = {
    "en": ("Summarise {title}. Style: {style}.", "Give me a summary of {title} ({style}).", "{title}, {style}"),
    "zh": ("请概括{title}，风格：{style}。", "用这种风格介绍{title}：{style}。", "{title}，{style}"),
}


@dataclass(frozen=True)
class StyledSummaries:
    """One call a style. The passage's heading is its title; where there is none, the LLM's."""

    ladder: Ladder
    prompts: dict[Language, Prompt]
    styles: Sequence[str]
    name: ClassVar[Literal["styles"]] = "styles"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic(f"style-{number}")]) for number in range(1, len(self.styles) + 1)]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, topic = source.passage, request.topics[0]
        style = self.styles[int(topic.question_id.removeprefix("style-")) - 1]
        prompt = self.prompts[passage.language]
        found = await self.ladder.ask(self.name, passage, prompt, SUMMARY, shown=passage.text, style=style)
        if isinstance(found, Rejection):
            return [found]
        item = checked_summary(passage, prompt, found[0])
        if isinstance(item, Finding):
            return [rejected(item, found[0].prompted)]
        title = (passage.heading or item.content).strip().lstrip("#").strip()
        asked = enumerate(_ASKED[passage.language], 1)
        ask = tuple(Phrasing(f"styled-{n}", wording.format(title=title, style=style)) for n, wording in asked)
        return [Answer(replace(topic, ask=ask), item.summary, (0, len(passage.text)), found[0].prompted)]
