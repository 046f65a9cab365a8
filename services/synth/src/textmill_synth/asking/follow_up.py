"""Makes two turns of one question: first the subject is spoken of, then the question says no more than "it".

The first reply is grounded: another accepted answer about the same passage, or the passage's first sentence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from textmill.contracts.datasets import Message
from textmill.contracts.documents import Language, Passage
from textmill_synth.asking.mention import find_mention, with_pronoun
from textmill_synth.asking.templates import rotated
from textmill_synth.asking.ways import built_in_ways
from textmill_synth.sentences import sentence_spans
from textmill_synth.strategies.base import Answer
from textmill_synth.topics import Phrasing, Topic


@dataclass(frozen=True)
class _FirstTurn:
    """``label`` tells which one it is; ``evidence`` is where in the passage the reply comes from."""

    label: str
    question: str
    reply: str
    evidence: tuple[int, int]

    @property
    def messages(self) -> tuple[Message, Message]:
        return Message(role="user", content=self.question), Message(role="assistant", content=self.reply)


def follow_ups(passage: Passage, answer: Answer, others: Sequence[Answer], turn: int) -> Iterator[Phrasing]:
    """Each wording that a pronoun fits into, with each first turn in its turn."""
    topic, language = answer.topic, passage.language
    firsts = [*_about_others(passage, answer, others), *_openings(passage, answer)]
    if not firsts:
        return
    for number, base in enumerate(rotated([p for p in topic.ask if p.axis == "plain" and not p.added], turn)):
        mention = find_mention(base.question, topic.subject, language)
        asked = with_pronoun(base.question, mention, language) if mention else None
        if asked is None:
            continue
        first = firsts[number % len(firsts)]
        yield Phrasing(
            f"follow-up-{first.label}/{base.way}",
            asked,
            "follow_up",
            history=first.messages,
            added=True,
            evidence=first.evidence,
        )


def _about_others(passage: Passage, answer: Answer, others: Sequence[Answer]) -> Iterator[_FirstTurn]:
    """Questions with other answers about the same subject, each in the wording that names it most fully."""
    subject = answer.topic.subject
    for other in others:
        if other.topic.question_id == answer.topic.question_id or other.before or other.between:
            continue
        naming = [
            p.question for p in other.topic.ask if not p.added and find_mention(p.question, subject, passage.language)
        ]
        if naming:
            question = max(naming, key=lambda q: sum(value in q for value in subject))
            yield _FirstTurn(other.topic.question_id, question, other.text, other.evidence)


def _openings(passage: Passage, answer: Answer) -> Iterator[_FirstTurn]:
    """The passage's first sentence, where it names the subject, tells what the subject is."""
    spans = [s for s in sentence_spans(passage.text) if not passage.text[slice(*s)].startswith("#")]
    names = [_name_in(p.question, answer.topic, passage.language) for p in answer.topic.ask if not p.added]
    named = max(filter(None, names), key=len, default=None)
    reply = passage.text[slice(*spans[0])] if spans else ""
    if named is None or not any(value in reply for value in answer.topic.subject):
        return
    for number, opening in enumerate(built_in_ways(passage.language).openings, 1):
        yield _FirstTurn(f"opening-{number}", opening.replace("{subject}", named), reply, spans[0])


def _name_in(question: str, topic: Topic, language: Language) -> str | None:
    mention = find_mention(question, topic.subject, language)
    return question[mention.start : mention.end].rstrip(",") if mention else None
