"""The owner's own prompts: what is written is theirs to say, the form and the checks are ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Language
from textmill.contracts.synthesis import OwnerPrompt
from textmill.errors import BadRequest
from textmill_synth.ladder import Ladder, Shape
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import Rejection, Request, Settlement, Source
from textmill_synth.strategies.grounded import Ground, settle_pair
from textmill_synth.strategies.pairs import TEXTS_A_PAIR
from textmill_synth.topics import Topic

_SHAPE = Shape(Pair, texts_each=TEXTS_A_PAIR)


@dataclass(frozen=True)
class OwnerPrompts:
    """One row and one call for each prompt in the passage's language. What the user says needn't be a question."""

    ladder: Ladder
    owned: Sequence[OwnerPrompt]
    prompts: Mapping[str, Prompt]
    name: ClassVar[Literal["prompt"]] = "prompt"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic(own.id)]) for own in self.owned if own.language == source.passage.language]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage, (topic,) = source.passage, request.topics
        prompt = self.prompts[topic.question_id]
        found = await self.ladder.ask(
            self.name, passage, prompt, _SHAPE, shown=passage.text, heading=passage.heading or ""
        )
        if isinstance(found, Rejection):
            return [found]
        words = next(own.prompt for own in self.owned if own.id == topic.question_id)
        ground = Ground(passage, f"{prompt.instructions}\n{words}", passage.text)
        return [settle_pair(ground, topic, found[0], asks=False)]


def owner_prompts(ladder: Ladder, forms: Mapping[Language, Prompt], owned: Sequence[OwnerPrompt]) -> OwnerPrompts:
    """``forms`` say, behind the owner's words, in which form to reply. Raises ``BadRequest`` for two of one id."""
    prompts = {own.id: _template(own, forms[own.language]) for own in owned}
    if len(prompts) < len(owned):
        raise BadRequest(f"two prompts have one id: {[own.id for own in owned]}; give each its own")
    return OwnerPrompts(ladder, owned, prompts)


def _template(own: OwnerPrompt, form: Prompt) -> Prompt:
    """The owner's words stand in it as one literal: they are no template, and open no turn."""
    words = json.dumps(own.prompt, ensure_ascii=False)
    slots = 'replace("{heading}", heading) | replace("{passage}", shown)'
    return Prompt(f"prompt-{own.id}.{own.language}", f"### user\n{{{{ {words} | {slots} }}}}\n\n{form.text}")
