"""Puts a question into the templates of an axis: the owner's own first, then the built-in ones.

Which built-in template and which wording come first depends on the seed and the question, so that a dataset has all of
them, whatever the quota.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from textmill.contracts.datasets import Axis
from textmill.contracts.documents import Language
from textmill.contracts.synthesis import AskingOptions
from textmill_synth.asking.clauses import as_clause
from textmill_synth.asking.mention import find_mention
from textmill_synth.asking.ways import WordingTemplate, built_in_ways
from textmill_synth.topics import Phrasing

TEMPLATE_AXES: tuple[Axis, ...] = ("register", "persona", "indirect")
T = TypeVar("T")
_ENDS_SENTENCE = re.compile(r"(?:^|[.?!。？！…][\"'”’)]*)\s*$")
_LOWERED = re.compile(
    r"(?:What|Which|Who|Whom|Whose|Where|When|Why|How|Is|Are|Was|Were|Do|Does|Did|Can|Could|In|On|At|Of|From|With|If|The)\b"
)


def templates_for(axis: Axis, language: Language, options: AskingOptions, turn: int) -> list[WordingTemplate]:
    """``turn`` rotates the built-in ones."""
    own = [t for t in options.templates if (t.axis, t.language) == (axis, language)]
    owners = [WordingTemplate(id=f"owner-{n}", axis=axis, text=t.text) for n, t in enumerate(own, 1)]
    built_in = [t for t in built_in_ways(language).templates if t.axis == axis]
    return owners + rotated(built_in, turn)


def from_templates(
    templates: Sequence[WordingTemplate], asked: Sequence[Phrasing], subject: Sequence[str], language: Language
) -> Iterator[Phrasing]:
    """Every template with every wording, each time with the next ones of both."""
    for step in range(len(asked)):
        for number, template in enumerate(templates):
            base = asked[(number + step) % len(asked)]
            text = filled(template, base.question, subject, language)
            if text is not None:
                yield Phrasing(f"{template.id}/{base.way}", text, template.axis, added=True)


def filled(template: WordingTemplate, question: str, subject: Sequence[str], language: Language) -> str | None:
    """None where the template needs a clause that the question doesn't give, where a word would stand there twice, or
    where two sentences would run together."""
    before, slot, after = re.split(r"\{(question|embedded)\}", template.text, maxsplit=1)
    if slot == "embedded":
        clause = as_clause(question, find_mention(question, subject, language), language)
        return None if clause is None else f"{before}{clause}{after}"
    if after and question[-1].isalnum():
        return None
    if language == "zh" and question[0] == "请" and "请" in before:
        return None
    if language == "en" and not _ENDS_SENTENCE.search(before) and _LOWERED.match(question):
        question = question[0].lower() + question[1:]
    return f"{before}{question}{after}"


def rotated(items: Sequence[T], turn: int) -> list[T]:
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]


def turn_of(seed: int, *content: str) -> int:
    """A number that belongs to the content."""
    return int.from_bytes(hashlib.sha256("\x1f".join([str(seed), *content]).encode()).digest()[:4])
