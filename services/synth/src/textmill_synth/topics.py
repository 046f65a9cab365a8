"""What is asked about a passage: topics, each with all its phrasings, those for training and those held out.

A topic comes from the owner's question set, or from the built-in ways of asking about a subject (``ways/*.yaml``).
Knows nothing of LLMs or splits.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from textmill.contracts.datasets import Axis, Message
from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import Question, QuestionSet
from textmill.errors import BadRequest
from textmill_synth.asking.ways import built_in_ways
from textmill_synth.checks import Finding

_SLOT = re.compile(r"{(\w+)}")
_NO_WORD = re.compile(r"[^\w{}]+|_+")


@dataclass(frozen=True)
class Phrasing:
    """A question and the name of the way it is asked. ``history`` is what was said before it, ``evidence`` where in the
    passage that comes from.

    ``added`` is set on a wording that the asking options called for: unlike the others it may be left out or replaced.
    ``call_id`` and ``prompt_version`` are those of the call that wrote it, where an LLM did.
    """

    way: str
    question: str
    axis: Axis = "plain"
    history: Sequence[Message] = ()
    added: bool = False
    call_id: str | None = None
    prompt_version: str | None = None
    evidence: tuple[int, int] | None = None

    @property
    def said(self) -> str:
        """All that is said up to the answer: a follow-up is no question by itself."""
        return "\n".join([*(message.content for message in self.history), self.question])


@dataclass(frozen=True)
class DroppedWording:
    """A wording that was made and not kept, and why: ``value`` reached the ``threshold`` of the rule ``reason``."""

    phrasing: Phrasing
    reason: str
    detail: str
    value: float = 1.0
    threshold: float = 1.0


@dataclass(frozen=True)
class Further:
    """What the asking options brought besides a topic's own wordings.

    ``wanted`` are the quotas, ``missing`` what came short of them, by axis and reason. ``reserve`` holds wordings that
    take the place of added ones which the dataset has already; ``dropped`` those not kept.
    """

    wanted: Mapping[Axis, int] = field(default_factory=dict)
    missing: Mapping[tuple[Axis, str], int] = field(default_factory=dict)
    reserve: Sequence[Phrasing] = ()
    dropped: Sequence[DroppedWording] = ()


@dataclass(frozen=True)
class Topic:
    """One answer to be had from a passage. ``ask`` is for training, and empty while the subject isn't known yet.

    ``key`` is where the fact stands in the passage's text. ``flaw`` says why the topic can't be asked at all.
    ``subject`` has the words that name what is asked about, as they stand in the questions.
    """

    question_id: str
    ask: Sequence[Phrasing] = ()
    held_out: Sequence[Phrasing] = ()
    key: tuple[int, int] | None = None
    flaw: Finding | None = None
    subject: Sequence[str] = ()
    further: Further = Further()


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
    ways = built_in_ways(language)
    ask = tuple(Phrasing(way.id, way.ask.format(content=content), way.axis) for way in ways.ask)
    held_out = tuple(Phrasing(way.id, way.ask.format(content=content), way.axis) for way in ways.held_out)
    return Topic(question_id, ask, held_out, subject=(content,))


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
    subject = tuple(value for value in dict.fromkeys(slots.values()) if value)
    found = re.search(question.key, passage.text)
    if found is None or not found.group("key"):
        flaw = Finding("key_not_in_passage", f"the key of question {question.id!r} doesn't match: {question.key!r}")
        return Topic(question.id, ask, held_out, flaw=flaw, subject=subject)
    return Topic(question.id, ask, held_out, key=found.span("key"), subject=subject)


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
