"""Holds what an LLM wrote about a passage, question and answer and quotation, against the passage.

For the strategies whose questions are the LLM's own: such a question is no source of facts, so it is checked like an
answer, and the answer is checked against the passage alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textmill.contracts.documents import Passage
from textmill_synth.checks import (
    FORM_CHECKS,
    Candidate,
    Check,
    Finding,
    empty,
    first_finding,
    format_slip,
    prompt_leak,
    refusal,
    repetition,
    too_long,
    wrong_language,
)
from textmill_synth.evidence import evidence_missing, locate_evidence
from textmill_synth.grounding import GROUNDING_CHECKS, ungrounded_name, ungrounded_number
from textmill_synth.ladder import Found
from textmill_synth.responses import Pair
from textmill_synth.strategies.base import Answer, Rejection, Settlement, Span, rejected
from textmill_synth.topics import Phrasing, Topic, normal_form

MAX_QUESTION_CHARACTERS = 300
MAX_ANSWER_CHARACTERS = 800
_NO_COUNT = re.compile("(?<=[哪这那每某])一")
"""Which one, this one: asks, and counts nothing."""
QUESTION_CHECKS: tuple[Check, ...] = (
    empty,
    repetition,
    format_slip,
    refusal,
    prompt_leak,
    wrong_language,
    too_long,
    ungrounded_number,
    ungrounded_name,
)


@dataclass(frozen=True)
class Ground:
    """What is held against what: the text shown, and the instructions that went with it."""

    passage: Passage
    instructions: str
    shown: str

    def question_finding(self, question: str, asks: bool = True) -> Finding | None:
        """``asks`` False for what need not be a question: a task."""
        if asks and not question.rstrip().endswith(("?", "？")):
            return Finding("format", f"no question mark ends the question {question[-40:]!r}")
        statement = _NO_COUNT.sub("", question.strip().rstrip("?？")) + ("。" if self.passage.language == "zh" else ".")
        return first_finding(self._candidate(statement, "", MAX_QUESTION_CHARACTERS), QUESTION_CHECKS)

    def answer_finding(
        self,
        question: str,
        answer: str,
        evidence: Span | None = None,
        checks: tuple[Check, ...] = GROUNDING_CHECKS,
    ) -> Finding | None:
        """The heading counts as source, the question doesn't."""
        candidate = replace(self._candidate(answer, question, MAX_ANSWER_CHARACTERS), evidence=evidence)
        heading = self.passage.heading or ""
        return first_finding(candidate, FORM_CHECKS) or first_finding(replace(candidate, question=heading), checks)

    def _candidate(self, answer: str, question: str, max_characters: int) -> Candidate:
        return Candidate(
            answer=answer,
            question=question,
            passage=self.shown,
            language=self.passage.language,
            instructions=self.instructions,
            max_characters=max_characters,
        )


def settle_pairs(
    ground: Ground, topics: Sequence[Topic], found: Sequence[Found[Pair]], asks: bool = True
) -> list[Settlement]:
    """One settlement for each topic: its item's, or that there is none. A question asked before is a duplicate."""
    seen: set[str] = set()
    settlements: list[Settlement] = []
    for number, topic in enumerate(topics):
        if number >= len(found):
            last = found[-1].prompted if found else None
            finding = Finding("missing", f"{len(topics)} were asked for, {len(found)} came")
            settlements.append(rejected(finding, last))
            continue
        settled = settle_pair(ground, topic, found[number], asks)
        if isinstance(settled, Answer):
            question = normal_form(settled.topic.ask[0].question)
            if question in seen:
                settled = rejected(Finding("duplicate", "the same question twice"), found[number].prompted)
            seen.add(question)
        settlements.append(settled)
    return settlements


def settle_pair(ground: Ground, topic: Topic, found: Found[Pair], asks: bool = True) -> Answer | Rejection:
    item = found.item
    if isinstance(item, Finding):
        return rejected(item, found.prompted)
    question, answer = item.question.strip(), item.answer.strip()
    span = locate_evidence(item.evidence, ground.passage.text)
    finding = (
        ground.question_finding(question, asks)
        or (evidence_missing(item.evidence) if span is None else None)
        or ground.answer_finding(question, answer, span)
    )
    if finding or span is None:
        return rejected(finding or evidence_missing(item.evidence), found.prompted)
    return Answer(replace(topic, ask=(Phrasing("written", question),)), answer, span, found.prompted)


def rejected_all(rejection: Rejection, topics: Sequence[Topic]) -> list[Settlement]:
    return [rejection for _ in topics]
