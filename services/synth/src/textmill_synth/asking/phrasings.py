"""Has an LLM put questions into other words, and keeps those that have the same answer.

A candidate is looked at in code first. Then the LLM is shown the passage and asked the candidate; its answer must agree
with the accepted one. It is shown the whole passage, never the key's sentence alone: there any question would have the
key for an answer. Costs one call for the candidates, and one for each that is tried until there are enough.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language, Passage
from textmill_synth.asking.kept import answer_retold, answer_told, content_units, name_lost, number_lost, wrong_script
from textmill_synth.checks import FORM_CHECKS, Candidate, Finding, first_finding, truncated
from textmill_synth.grounding import contains
from textmill_synth.llm import CallFailed, Schema
from textmill_synth.numerals import numbers
from textmill_synth.prompts import Prompt
from textmill_synth.responses import (
    Answered,
    Item,
    Text,
    labelled_items,
    listed,
    one_item,
    repaired_json,
    strict_json,
    whole_items,
)
from textmill_synth.sentences import first_sentence
from textmill_synth.strategies.base import Answer, Prompted, ResponseForm
from textmill_synth.topics import DroppedWording, Phrasing, normal_form

SAME_ANSWER = 0.6
"""The share of an accepted answer's content that the answer to the new wording must have, where there is no key."""
_ASKS_EN = re.compile(
    r"(?:please|tell|name|explain|describe|give|list|state|say|show|identify|specify|summari[sz]e|define|outline|i)\b",
    re.I,
)
_ASKS_ZH = re.compile("请|说|讲|写|列|解释|介绍|描述|告诉|谈|概括|指出|想知道|想了解")


class Asks(Protocol):
    """How an LLM is asked; ``strategies.base.Generator`` is one."""

    @property
    def form(self) -> ResponseForm: ...

    async def ask(
        self,
        passage: Passage,
        prompt: Prompt,
        schema: Schema | None,
        slots: Mapping[str, object],
        texts: int = 1,
        sample: int = 0,
    ) -> Prompted: ...


class Asked(Item):
    question: Text


@dataclass
class Written:
    """What came of having wordings written. ``failed``: the fault of a call or a response that cost some of them."""

    kept: list[Phrasing] = field(default_factory=list)
    dropped: list[DroppedWording] = field(default_factory=list)
    failed: str | None = None


@dataclass(frozen=True)
class PhrasingWriter:
    """``writing`` prompts are by the language of the wording, ``checking`` by that of the passage."""

    asks: Asks
    writing: Mapping[Language, Prompt]
    checking: Mapping[Language, Prompt]

    async def write(
        self, passage: Passage, answer: Answer, axis: Axis, language: Language, tried: int, wanted: int
    ) -> Written:
        """Up to ``wanted`` wordings out of ``tried``. A call that fails ends it: what is kept so far stays."""
        written = Written()
        try:
            for phrasing in await self._candidates(passage, answer, axis, language, tried, written):
                if len(written.kept) == wanted:
                    break
                lost = _flaw(phrasing, passage, answer, language) or await self._other_answer(passage, answer, phrasing)
                if lost:
                    written.dropped.append(lost)
                else:
                    written.kept.append(phrasing)
        except CallFailed as exc:
            written.failed = exc.kind
        return written

    async def _candidates(
        self, passage: Passage, answer: Answer, axis: Axis, language: Language, tried: int, written: Written
    ) -> Sequence[Phrasing]:
        prompt = self.writing[language]
        slots = {"question": answer.topic.ask[0].question, "count": tried, "translated": language != passage.language}
        prompted = await self.asks.ask(passage, prompt, _list_schema(tried), slots, texts=tried)
        candidates: list[Phrasing] = []
        for number, item in enumerate(_read(prompted, self.asks.form)[:tried], 1):
            if isinstance(item, Finding):
                written.failed = item.reason
                continue
            candidates.append(
                Phrasing(
                    f"llm-{language}-{number}",
                    item.question.strip(),
                    axis,
                    added=True,
                    call_id=prompted.call.call_id,
                    prompt_version=prompted.prompt_version,
                )
            )
        return candidates

    async def _other_answer(self, passage: Passage, answer: Answer, phrasing: Phrasing) -> DroppedWording | None:
        prompt = self.checking[passage.language]
        slots = {"question": phrasing.question, "shown": passage.text}
        prompted = await self.asks.ask(passage, prompt, Answered.model_json_schema(), slots)
        raw = prompted.call.completion.text
        value: JsonValue | Finding = {"answer": raw.strip()}
        if self.asks.form == "json":
            value = strict_json(raw)
        said = value if isinstance(value, Finding) else one_item(value, Answered)
        if isinstance(said, Finding):
            return DroppedWording(phrasing, "other_answer", f"the answer to it isn't in the form: {said.detail}")
        share = agreement(passage, answer, first_sentence(said.answer))
        if share >= SAME_ANSWER:
            return None
        return DroppedWording(phrasing, "other_answer", f"the answer to it: {said.answer[:120]!r}", share, SAME_ANSWER)


def agreement(passage: Passage, answer: Answer, said: str) -> float:
    """From 0 to 1: whether what was said has the key facts; without any, how much of the answer's content, if it has
    the answer's numbers and no others."""
    keys = keys_of(passage, answer)
    if keys:
        return float(all(contains(said, key) for key in keys))
    question = answer.topic.ask[0].question
    if numbers(answer.text) - numbers(question) != numbers(said) - numbers(question):
        return 0.0
    wanted = content_units(answer.text) - content_units(question) or content_units(answer.text)
    return len(wanted & content_units(said)) / len(wanted) if wanted else float(said == answer.text)


def keys_of(passage: Passage, answer: Answer) -> list[str]:
    key = [passage.text[slice(*answer.topic.key)]] if answer.topic.key else []
    return list(dict.fromkeys([*key, *answer.key_facts]))


def _flaw(phrasing: Phrasing, passage: Passage, answer: Answer, language: Language) -> DroppedWording | None:
    plain = answer.topic.ask[0].question
    if normal_form(phrasing.question) in {normal_form(p.question) for p in answer.topic.ask}:
        return DroppedWording(phrasing, "echo", "asked in these words already")
    if not _asks(phrasing.question, language):
        return DroppedWording(phrasing, "no_question", "neither a question mark nor a request")
    return (
        wrong_script(phrasing, language)
        or number_lost(phrasing, plain, exactly=True)
        or name_lost(phrasing, plain, answer.topic.subject)
        or answer_told(phrasing, [p.question for p in answer.topic.ask], keys_of(passage, answer))
        or answer_retold(phrasing, plain, answer.text)
        or _malformed(phrasing, passage, plain, language)
    )


def _malformed(phrasing: Phrasing, passage: Passage, plain: str, language: Language) -> DroppedWording | None:
    """The checks of form, on the question as if it were a statement."""
    statement = phrasing.question.rstrip("?？ ") + ("。" if language == "zh" else ".")
    candidate = Candidate(answer=statement, question="", passage=f"{passage.text} {plain}", language=language)
    finding = first_finding(candidate, tuple(check for check in FORM_CHECKS if check is not truncated))
    return DroppedWording(phrasing, finding.reason, finding.detail) if finding else None


def _asks(question: str, language: Language) -> bool:
    if question.endswith(("?", "？")):
        return True
    if not question.endswith((".", "。", "!", "！")):
        return False
    return bool(_ASKS_ZH.search(question) if language == "zh" else _ASKS_EN.match(question))


def _read(prompted: Prompted, form: ResponseForm) -> Sequence[Asked | Finding]:
    """As asked for, or with the JSON mended, or the whole items of a list that breaks off."""
    raw = prompted.call.completion.text
    if form == "text":
        lines = labelled_items(raw, Asked)
        return [lines] if isinstance(lines, Finding) else lines
    for value in (strict_json(raw), repaired_json(raw)):
        values = value if isinstance(value, Finding) else listed(value)
        if not isinstance(values, Finding):
            return [one_item(v, Asked) for v in values]
    return [one_item(v, Asked) for v in whole_items(raw)] or [Finding("format", "no list of questions came")]


def _list_schema(count: int) -> Schema:
    items: JsonValue = {"type": "array", "items": dict(Asked.model_json_schema()), "minItems": 1, "maxItems": count}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}
