"""What the base model knows already: finds it out by asking, and lets a synth job leave it out.

Each question is asked twice: by itself, and with its passage. An answer is right when it has the key fact or, where the
question has no key, most content words and all numbers of the record's answer. That is a rule of thumb: it doesn't see
a negation, nor the same thing in other words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from textmill.contracts.documents import Language, Passage
from textmill.contracts.preflight import KnownItem, PreflightManifest, ValueCheck
from textmill.errors import NotFound
from textmill.store import ObjectStore
from textmill_synth.grounding import contains, content_words
from textmill_synth.llm import CallFailed
from textmill_synth.numerals import numbers
from textmill_synth.prompts import Prompt, load_prompt
from textmill_synth.strategies.base import Answer, Generator
from textmill_synth.tasks import all_of

ALIKE = 0.6
"""The share of a record's content that a right answer without a key fact must have."""
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


@dataclass(frozen=True)
class Lesson:
    """An accepted answer of a pilot, asked in its first wording."""

    passage: Passage
    answer: Answer

    @property
    def question(self) -> str:
        return self.answer.topic.ask[0].question

    @property
    def facts(self) -> list[str]:
        """The strings that a right answer contains; none when neither the topic nor the answer has any."""
        key = [self.passage.text[slice(*self.answer.topic.key)]] if self.answer.topic.key else []
        return [*key, *self.answer.key_facts]


def lessons(settled: Sequence[tuple[Passage, Answer]]) -> list[Lesson]:
    """Those that can be asked by themselves: no conversations, no tool calls. Each question once."""
    found: dict[tuple[str, str], Lesson] = {}
    for passage, answer in settled:
        alone = answer.topic.ask and not (answer.before or answer.between or answer.topic.ask[0].history)
        if alone:
            found.setdefault((passage.passage_id, answer.topic.question_id), Lesson(passage, answer))
    return list(found.values())


async def check_value(
    taught: Sequence[Lesson], base: Generator, system_prompt: str | None
) -> tuple[ValueCheck, list[KnownItem]]:
    """Ask ``base`` everything, two calls a lesson. A call without an answer makes its lesson ``unanswered``."""
    found = await all_of(_ask_twice(lesson, base, system_prompt) for lesson in taught)
    known = [lesson for lesson, sides in zip(taught, found, strict=True) if sides and sides[0]]
    learnable = sum(sides == (False, True) for sides in found)
    unanswered = found.count(None)
    check = ValueCheck(
        base_model=base.model,
        asked=len(taught),
        known=len(known),
        learnable=learnable,
        neither=len(taught) - len(known) - learnable - unanswered,
        unanswered=unanswered,
    )
    return check, [KnownItem(passage_id=k.passage.passage_id, question_id=k.answer.topic.question_id) for k in known]


async def _ask_twice(lesson: Lesson, base: Generator, system_prompt: str | None) -> tuple[bool, bool] | None:
    """Whether the base model is right without and with the passage."""
    passage, question = lesson.passage, {"question": lesson.question}
    closed = load_prompt("closed-book-system" if system_prompt else "closed-book")
    ways: list[tuple[Prompt, dict[str, object]]] = [
        (closed, {**question, "system": system_prompt}),
        (load_prompt(f"qa.{passage.language}"), {**question, "shown": passage.text}),
    ]
    try:
        prompted = await all_of(base.ask(passage, prompt, None, slots) for prompt, slots in ways)
    except CallFailed:
        return None
    closed_book, open_book = (is_right(p.call.completion.text, lesson) for p in prompted)
    return closed_book, open_book


def is_right(said: str, lesson: Lesson) -> bool:
    """The words of the question don't count: repeating it proves nothing."""
    if lesson.facts:
        return all(contains(said, fact) for fact in lesson.facts)
    language, answer = lesson.passage.language, lesson.answer.text
    if not numbers(answer) - numbers(lesson.question) <= numbers(said):
        return False
    wanted = _content(answer, language) - _content(lesson.question, language) or _content(answer, language)
    return len(wanted & _content(said, language)) >= ALIKE * len(wanted) > 0


def _content(text: str, language: Language) -> set[str]:
    if language == "zh":
        return {a + b for a, b in pairwise(_HAN.findall(text))}
    return set(content_words(text))


def load_known(store: ObjectStore, preflight_id: str | None) -> frozenset[tuple[str, str]]:
    """Pairs of passage and question that the preflight found known; none for None.

    A passage has the same id in every corpus that is split alike. Raises ``NotFound``: there is no such preflight.
    """
    if preflight_id is None:
        return frozenset()
    manifest = stored_preflight(store, preflight_id)
    return frozenset((item.passage_id, item.question_id) for item in manifest.known)


def preflight_key(preflight_id: str) -> str:
    return f"preflights/{preflight_id}/manifest.json"


def stored_preflight(store: ObjectStore, preflight_id: str) -> PreflightManifest:
    """Raises ``NotFound``."""
    try:
        return PreflightManifest.model_validate_json(store.get(preflight_key(preflight_id)))
    except NotFound as exc:
        raise NotFound(f"no preflight {preflight_id!r}: its job must have succeeded; see 'textmill jobs list'") from exc
