"""Puts the question of an accepted answer into further wordings, axis by axis, up to the quota of each.

What depends on chance depends on the seed and the content alone. Which wordings other answers have is seen to later,
when answers are written down in their order (``augment.QuestionIndex``); for that each axis has some in reserve.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language, Passage
from textmill.contracts.synthesis import AskingOptions
from textmill_synth.asking.follow_up import follow_ups
from textmill_synth.asking.kept import answer_told, number_lost
from textmill_synth.asking.keywords import keywords
from textmill_synth.asking.mention import find_mention
from textmill_synth.asking.near import Wordings
from textmill_synth.asking.phrasings import PhrasingWriter, keys_of
from textmill_synth.asking.templates import TEMPLATE_AXES, from_templates, rotated, templates_for, turn_of
from textmill_synth.asking.typos import with_typos
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import DroppedWording, Further, Phrasing, normal_form

AXES: tuple[Axis, ...] = get_args(Axis)
LLM_AXES: tuple[Axis, ...] = ("plain", "language")
_OTHER: dict[Language, Language] = {"en": "zh", "zh": "en"}
_TRIES_A_WORDING = 4
"""So many candidates are made for each wording that is wanted. What is made and not kept is written down."""


def wanted_wordings(options: AskingOptions) -> dict[Axis, int]:
    """The quotas; without one for ``plain``, all that the LLM is asked to write are wanted."""
    wanted: dict[Axis, int] = {"plain": options.llm_phrasings, **options.quotas}
    return {axis: wanted[axis] for axis in AXES if wanted.get(axis)}


@dataclass(frozen=True)
class Asker:
    """``writer`` is needed for the axes ``plain`` and ``language``; without it these stay unfilled, and it is said."""

    options: AskingOptions
    seed: int
    writer: PhrasingWriter | None = None

    async def extend(self, passage: Passage, answer: Answer) -> Answer:
        """The answer with further wordings in its topic, all axes but ``follow_up``. Without options, as it is."""
        wanted = wanted_wordings(self.options)
        if not wanted or not answer.topic.ask:
            return answer
        answer = _with_subject(passage, answer)
        choice = _Choice(passage, answer, self.options)
        for axis, quota in wanted.items():
            if axis in LLM_AXES:
                await self._write(choice, axis, quota)
            elif axis != "follow_up":
                choice.take(axis, quota, self._made(axis, passage, answer), _WHY_SHORT[axis])
        further = choice.further({axis: n for axis, n in wanted.items() if axis != "follow_up"})
        return replace(answer, topic=replace(answer.topic, ask=(*answer.topic.ask, *choice.taken), further=further))

    def follow_up(self, passage: Passage, answers: Sequence[Answer]) -> list[Answer]:
        """The accepted answers on one passage, in their order, with questions that follow up on one another.

        Of several answers to one question, the first gets them.
        """
        quota = self.options.quotas.get("follow_up", 0)
        seen: set[str] = set()
        followed = []
        for answer in answers:
            first = answer.topic.question_id not in seen
            seen.add(answer.topic.question_id)
            followed.append(self._followed_up(passage, answer, answers, quota) if quota and first else answer)
        return followed

    def _followed_up(self, passage: Passage, answer: Answer, others: Sequence[Answer], quota: int) -> Answer:
        topic, choice = answer.topic, _Choice(passage, answer, self.options)
        spoken = bool(answer.before or answer.between)
        turn = turn_of(self.seed, "follow_up", passage.text, topic.question_id)
        made = () if spoken else follow_ups(passage, answer, others, turn)
        choice.take("follow_up", quota, made, "is_a_conversation" if spoken else _WHY_SHORT["follow_up"])
        further = choice.further({"follow_up": quota})
        before = topic.further
        both = Further(
            {**before.wanted, **further.wanted},
            {**before.missing, **further.missing},
            (*before.reserve, *further.reserve),
            (*before.dropped, *further.dropped),
        )
        return replace(answer, topic=replace(topic, ask=(*topic.ask, *choice.taken), further=both))

    async def _write(self, choice: "_Choice", axis: Axis, quota: int) -> None:
        answer, passage = choice.answer, choice.passage
        tried = max(quota, self.options.llm_phrasings) if axis == "language" else self.options.llm_phrasings
        if self.writer is None or not tried:
            choice.take(axis, quota, (), "no_llm_phrasings")
            return
        if answer.before or answer.between:
            choice.take(axis, quota, (), "is_a_conversation")
            return
        language = _OTHER[passage.language] if axis == "language" else passage.language
        written = await self.writer.write(passage, answer, axis, language, tried, quota)
        choice.dropped += written.dropped
        choice.take(axis, quota, written.kept, written.failed or "too_few_written")

    def _made(self, axis: Axis, passage: Passage, answer: Answer) -> Iterator[Phrasing]:
        """Wordings made by rule, the best first."""
        topic, language = answer.topic, passage.language
        turn = turn_of(self.seed, axis, passage.text, topic.question_id)
        plain = [p for p in topic.ask if p.axis == "plain" and not p.added] or list(topic.ask)
        asked = rotated(plain, turn)
        if axis in TEMPLATE_AXES:
            yield from from_templates(templates_for(axis, language, self.options, turn), asked, topic.subject, language)
        elif axis == "keyword":
            yield from _as_keywords(asked, topic.subject, passage)
        elif axis == "typo":
            yield from self._mistyped(asked, passage, answer)

    def _mistyped(self, asked: Sequence[Phrasing], passage: Passage, answer: Answer) -> Iterator[Phrasing]:
        topic = answer.topic
        for draw in range(3):
            for base in asked:
                mention = find_mention(base.question, topic.subject, passage.language)
                named = [base.question[mention.start : mention.end]] if mention else []
                kept = [*topic.subject, *keys_of(passage, answer), *named]
                slipped = with_typos(base.question, kept, passage.text, passage.language, f"{self.seed}:{draw}")
                if slipped:
                    yield Phrasing(f"typo-{draw + 1}/{base.way}", slipped, "typo", added=True)


_WHY_SHORT: dict[Axis, str] = {
    "register": "no_more_templates",
    "persona": "no_more_templates",
    "indirect": "no_more_templates",
    "keyword": "no_more_keywords",
    "typo": "no_place_for_a_slip",
    "follow_up": "no_other_question",
}


def _with_subject(passage: Passage, answer: Answer) -> Answer:
    """Where the strategy knows no subject, it is the passage's heading, if the question names it."""
    topic, heading = answer.topic, (passage.heading or "").strip("# ").rstrip("。.：:")
    if topic.subject or not heading or not any(heading in p.question for p in topic.ask):
        return answer
    return replace(answer, topic=replace(topic, subject=(heading,)))


def _as_keywords(asked: Sequence[Phrasing], subject: Sequence[str], passage: Passage) -> Iterator[Phrasing]:
    """All wordings in their own order of words first, then with the subject in front."""
    turned = []
    for base in asked:
        mention = find_mention(base.question, subject, passage.language)
        in_order, *in_front = keywords(base.question, subject, mention, passage.text, passage.language) or [""]
        if in_order and normal_form(in_order) != normal_form(base.question):
            yield Phrasing(f"keyword/{base.way}", in_order, "keyword", added=True)
        turned += [Phrasing(f"keyword-subject-first/{base.way}", text, "keyword", added=True) for text in in_front]
    yield from turned


@dataclass
class _Choice:
    """The wordings of one answer while they are chosen."""

    passage: Passage
    answer: Answer
    options: AskingOptions
    taken: list[Phrasing] = field(default_factory=list)
    reserve: list[Phrasing] = field(default_factory=list)
    dropped: list[DroppedWording] = field(default_factory=list)
    missing: Counter[tuple[Axis, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._plain = [p.question for p in self.answer.topic.ask]
        self._keys = keys_of(self.passage, self.answer)
        self._known = Wordings(self.options.near_duplicate, self.answer.topic.held_out)
        for phrasing in self.answer.topic.ask:
            self._known.add(phrasing)

    def take(self, axis: Axis, quota: int, made: Iterable[Phrasing], why_short: str) -> None:
        """Fill the quota, and as much again in reserve, with the first candidates that can be kept."""
        kept: list[Phrasing] = []
        for tried, phrasing in enumerate(made):
            if len(kept) == 2 * quota or tried == _TRIES_A_WORDING * quota:
                break
            dropped = self._flaw(phrasing)
            if dropped:
                self.dropped.append(dropped)
                continue
            kept.append(phrasing)
            self._known.add(phrasing)
        self.taken += kept[:quota]
        self.reserve += kept[quota:]
        if len(kept) < quota:
            self._note_missing(axis, quota - len(kept), why_short)

    def further(self, wanted: dict[Axis, int]) -> Further:
        return Further(wanted, dict(self.missing), tuple(self.reserve), tuple(self.dropped))

    def _flaw(self, phrasing: Phrasing) -> DroppedWording | None:
        """A follow-up's own numbers are in what was said before it."""
        base = next((p.question for p in self.answer.topic.ask if phrasing.way.endswith(f"/{p.way}")), "")
        clash = self._known.clash(phrasing)
        if clash:
            reason, alike, threshold = clash
            return DroppedWording(phrasing, reason, "too much like another wording", alike, threshold)
        return answer_told(phrasing, self._plain, self._keys) or number_lost(phrasing, base)

    def _note_missing(self, axis: Axis, count: int, why_short: str) -> None:
        """Of the candidates that were dropped, as many as are missing; what is missing still has its own reason."""
        reasons = [drop.reason for drop in self.dropped if drop.phrasing.axis == axis][:count]
        for reason in reasons:
            self.missing[axis, reason] += 1
        if len(reasons) < count:
            self.missing[axis, why_short] += count - len(reasons)
