"""Records for the training benches, from the example's own text and questions, without an LLM.

Short ones are the demo's: every wording of every question about a hexagram, answered by the sentence that holds the
fact. Long ones ask for several hexagrams at once and are answered with their passages, word for word.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Span
from textmill.contracts.synthesis import QuestionSet

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "zhouyi"


def short_records(hexagrams: int = 8) -> list[Record]:
    """18 wordings of 3 questions each."""
    questions = QuestionSet.model_validate(yaml.safe_load((EXAMPLES / "questions.en.yaml").read_text("utf-8")))
    return [
        _record(wording.format(**subject), sentence, document)
        for document, text in _passages()[:hexagrams]
        for question in questions.questions
        for subject, sentence in [_answer(str(questions.subject), str(question.key), text)]
        for wording in question.ask
    ]


def long_records() -> list[Record]:
    """64 records of 5 to 7 hexagrams, about 500 to 900 tokens of SmolLM2's."""
    return list(_long_records(_passages()))


def _long_records(passages: Sequence[tuple[str, str]]) -> Iterator[Record]:
    for first in range(len(passages)):
        count = 5 + first % 3
        chosen = [passages[(first + n) % len(passages)] for n in range(count)]
        question = f"Tell me all about the {count} hexagrams from number {first + 1} on."
        yield _record(question, "\n\n".join(text for _, text in chosen), chosen[0][0])


def _passages() -> list[tuple[str, str]]:
    return [(path.stem, path.read_text("utf-8").strip()) for path in sorted((EXAMPLES / "en").glob("*.md"))]


def _answer(subject: str, key: str, text: str) -> tuple[dict[str, str], str]:
    """What the question's slots stand for, and the sentence with its key fact."""
    found = re.search(subject, text)
    sentence = next((s for s in re.split(r"(?<=\.)\s+", text) if re.search(key, s)), None)
    if found is None or sentence is None:
        raise ValueError(f"no subject {subject!r} or no key {key!r} in {text[:60]!r}")
    return found.groupdict(), sentence


def _record(question: str, answer: str, document: str) -> Record:
    return Record(
        record_id=content_id("rec", document, question),
        split="train",
        strategy="qa",
        language="en",
        messages=[Message(role="user", content=question), Message(role="assistant", content=answer)],
        key_facts=[answer],
        question_id="q",
        way="plain",
        document_id=content_id("doc", document),
        document_sha256="0" * 64,
        passage_id=f"psg_{document}",
        evidence=answer,
        evidence_span=Span(char_start=0, char_end=1, byte_start=0, byte_end=1),
    )
