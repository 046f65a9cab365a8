"""What is asked about a passage: topics, each with all its phrasings, those for training and those held out.

A topic comes from the owner's question set, or from the built-in ways of asking about a subject (``ways/*.yaml``).
Knows nothing of LLMs or splits.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field

from textmill.contracts.documents import Language, Passage
from textmill.contracts.jobs import Question, QuestionSet
from textmill.errors import BadRequest
from textmill_synth.checks import Finding

_SLOT = re.compile(r"{(\w+)}")
_NO_WORD = re.compile(r"[^\w{}]+|_+")


@dataclass(frozen=True)
class Phrasing:
    """A question and the name of the way it is asked."""

    way: str
    question: str


@dataclass(frozen=True)
class Topic:
    """One answer to be had from a passage. ``ask`` is for training, and empty while the subject isn't known yet.

    ``key`` is where the fact stands in the passage's text. ``flaw`` says why the topic can't be asked at all.
    """

    question_id: str
    ask: Sequence[Phrasing] = ()
    held_out: Sequence[Phrasing] = ()
    key: tuple[int, int] | None = None
    flaw: Finding | None = None


class _Way(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    ask: str = Field(pattern=r"\{content\}")


class _Ways(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ask: list[_Way]
    held_out: list[_Way]


def owner_topics(passage: Passage, question_sets: Sequence[QuestionSet]) -> list[Topic]:
    """A topic for each question of each set that has the passage's language and whose ``subject`` matches it."""
    topics = []
    for questions in question_sets:
        subject = re.search(questions.subject, passage.text) if questions.language == passage.language else None
        if subject:
            slots = {name: value or "" for name, value in subject.groupdict().items()}
            topics += [_owner_topic(passage, question, slots) for question in questions.questions]
    return topics


def subject_topic(passage: Passage) -> Topic:
    """What the passage's heading stands for, asked in the built-in ways."""
    if not passage.heading:
        detail = "the passage has no heading to ask about; give question_sets, or use the strategy 'summary'"
        return Topic("subject", flaw=Finding("no_subject", detail))
    return titled_topic("subject", passage.heading, passage.language)


def titled_topic(question_id: str, title: str, language: Language) -> Topic:
    """All built-in ways of asking about a title, which is cleaned of heading marks and a closing full stop."""
    content = title.strip().lstrip("#").strip().rstrip("。.：:")
    ways = _built_in_ways(language)
    ask = tuple(Phrasing(way.id, way.ask.format(content=content)) for way in ways.ask)
    held_out = tuple(Phrasing(way.id, way.ask.format(content=content)) for way in ways.held_out)
    return Topic(question_id, ask, held_out)


def validate_question_sets(question_sets: Sequence[QuestionSet]) -> None:
    """Find what would fail or leak later, before anything is paid.

    Raises:
        BadRequest: a pattern doesn't compile or lacks its group, a slot has no group, or a held-out wording is
            trained on too.
    """
    for questions in question_sets:
        groups = _groups(questions.subject, f"subject of the {questions.language} question set")
        for question in questions.questions:
            if "key" not in _groups(question.key, f"key of question {question.id!r}"):
                raise BadRequest(f"the key of question {question.id!r} has no group (?P<key>...): {question.key!r}")
            _validate_slots(question, groups)
        trained = {normal_form(wording) for question in questions.questions for wording in question.ask}
        for question in questions.questions:
            for wording in question.held_out:
                if normal_form(wording) in trained:
                    raise BadRequest(f"{wording!r} of question {question.id!r} is in both held_out and ask; keep one")


def normal_form(question: str) -> str:
    """Equal for questions that differ in case, spacing, punctuation or width alone."""
    folded = unicodedata.normalize("NFKC", question).casefold()
    return _NO_WORD.sub("", folded)


def _owner_topic(passage: Passage, question: Question, slots: dict[str, str]) -> Topic:
    ask = tuple(Phrasing(f"ask-{n}", w.format(**slots)) for n, w in enumerate(question.ask, 1))
    held_out = tuple(Phrasing(f"held-out-{n}", w.format(**slots)) for n, w in enumerate(question.held_out, 1))
    found = re.search(question.key, passage.text)
    if found is None or not found.group("key"):
        flaw = Finding("key_not_in_passage", f"the key of question {question.id!r} doesn't match: {question.key!r}")
        return Topic(question.id, ask, held_out, flaw=flaw)
    return Topic(question.id, ask, held_out, key=found.span("key"))


def _groups(pattern: str, what: str) -> set[str]:
    try:
        return set(re.compile(pattern).groupindex)
    except re.error as exc:
        raise BadRequest(f"the {what} is no regular expression: {pattern!r}: {exc}") from exc


def _validate_slots(question: Question, groups: set[str]) -> None:
    for wording in (*question.ask, *question.held_out):
        left = _SLOT.sub("", wording)
        unknown = set(_SLOT.findall(wording)) - groups
        if unknown or "{" in left or "}" in left:
            raise BadRequest(
                f"wording {wording!r} of question {question.id!r} has a slot that the subject doesn't fill: "
                f"{sorted(unknown) or 'a stray brace'}; the subject's groups are {sorted(groups)}"
            )


@cache
def _built_in_ways(language: Language) -> _Ways:
    text = files("textmill_synth").joinpath("ways", f"{language}.yaml").read_text(encoding="utf-8")
    return _Ways.model_validate(yaml.safe_load(text))
