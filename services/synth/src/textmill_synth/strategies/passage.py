"""Answers copied from the passage, without an LLM: nothing can be invented, and nothing is put in other words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textmill.contracts.documents import Passage
from textmill.contracts.synthesis import QuestionSet
from textmill_synth.checks import Finding
from textmill_synth.sentences import sentence_around, sentence_spans
from textmill_synth.strategies.base import Answer, Request, Settlement, Source, rejected, topics_of
from textmill_synth.topics import Topic

MAX_LEAD_CHARACTERS = 300


@dataclass(frozen=True)
class Extractive:
    """A question with a key is answered by the sentence that holds it, one without by the passage's first sentences."""

    question_sets: Sequence[QuestionSet]
    name: ClassVar[Literal["passage"]] = "passage"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([topic]) for topic in topics_of(source.passage, self.question_sets)]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        return [_quoted_answer(source.passage, topic) for topic in request.topics]


def _quoted_answer(passage: Passage, topic: Topic) -> Settlement:
    if topic.flaw:
        return rejected(topic.flaw)
    span = sentence_around(passage.text, *topic.key) if topic.key else _lead(passage)
    quoted = passage.text[slice(*span)]
    if not quoted:
        return rejected(Finding("empty", "the passage has no sentence besides its heading"))
    # The evidence stays as it stands in the document; the answer doesn't keep its line breaks.
    joiner = "" if passage.language == "zh" else " "
    return Answer(topic, joiner.join(quoted.splitlines()) if "\n" in quoted else quoted, span)


def _lead(passage: Passage) -> tuple[int, int]:
    """The first sentences that fit into ``MAX_LEAD_CHARACTERS``, at least one; a heading of its own is left out."""
    spans = [s for s in sentence_spans(passage.text) if not _is_heading(passage, s)]
    if not spans:
        return (0, 0)
    start = spans[0][0]
    fitting = [end for _, end in spans if end - start <= MAX_LEAD_CHARACTERS]
    return start, fitting[-1] if fitting else spans[0][1]


def _is_heading(passage: Passage, span: tuple[int, int]) -> bool:
    text = passage.text[slice(*span)]
    return text.startswith("#") or text.strip() == passage.heading
