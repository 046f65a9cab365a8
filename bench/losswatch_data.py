"""The data of ``bench/losswatch.py``: the demo's own facts, some answers with a planted format slip. No LLM."""

import hashlib
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from textmill.contracts.base import content_id
from textmill.contracts.datasets import Message, Record
from textmill.contracts.documents import Language, Span
from textmill.contracts.synthesis import Question, QuestionSet
from textmill_synth.sentences import sentence_around

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "zhouyi"
sys.path.insert(0, str(ROOT))

from tests.trainer.slips import SLIPS, Sample, slip  # noqa: E402

By = Literal["row", "fact"]
"""A slip in one row alone, or in a fact's answer before it was copied to all wordings, as the owner's pipeline did."""
_OTHER: Mapping[Language, Language] = {"en": "zh", "zh": "en"}


@dataclass(frozen=True)
class Planted:
    """``slips`` says by record id what was done to it; all other records are good."""

    records: Sequence[Record]
    slips: Mapping[str, str]


def make_records(language: Language, hexagrams: int, wordings: int, first: int = 0) -> list[Record]:
    """Three facts a hexagram, each asked in so many wordings, answered by the sentence of the passage that has it."""
    questions = _questions(language)
    names = sorted(path.name for path in (EXAMPLES / language).glob("*.md"))[first : first + hexagrams]
    return [
        record
        for name in names
        for question in questions.questions
        for record in _records_of(name, questions, question, wordings)
    ]


def plant(records: Sequence[Record], share: float, by: By, seed: int) -> Planted:
    """Replace the answers of this share of the rows, or of the facts, by slips: each kind in turn."""
    rng = random.Random(seed)
    groups: dict[str, list[Record]] = {}
    for record in records:
        fact = f"{record.passage_id}/{record.question_id}"
        groups.setdefault(record.record_id if by == "row" else fact, []).append(record)
    chosen = rng.sample(sorted(groups), round(share * len(groups)))
    kinds = rng.sample(list(SLIPS), len(SLIPS))
    slipped: dict[str, Record] = {}
    slips: dict[str, str] = {}
    for turn, group in enumerate(chosen):
        kind = kinds[turn % len(kinds)]
        answer = slip(_sample(groups[group][0]), kind, rng)
        for record in groups[group]:
            slipped[record.record_id] = _answered(record, answer)
            slips[record.record_id] = kind
    return Planted([slipped.get(r.record_id, r) for r in records], slips)


def _records_of(name: str, questions: QuestionSet, question: Question, wordings: int) -> Iterator[Record]:
    passage = _text(questions.language, name)
    subject = re.search(questions.subject or "", passage)
    answer = _answer(passage, question)
    if subject is None:
        raise SystemExit(f"{name}: the subject of questions.{questions.language}.yaml isn't in it")
    sha256 = hashlib.sha256(passage.encode()).hexdigest()
    start = passage.index(answer)
    byte_start = len(passage[:start].encode())
    span = Span(
        char_start=start,
        char_end=start + len(answer),
        byte_start=byte_start,
        byte_end=byte_start + len(answer.encode()),
    )
    for wording in question.ask[:wordings]:
        asked = wording.format(**subject.groupdict())
        yield Record(
            record_id=content_id("rec", name, questions.language, asked),
            split="train",
            strategy="passage",
            language=questions.language,
            messages=[Message(role="user", content=asked), Message(role="assistant", content=answer)],
            key_facts=[],
            question_id=question.id,
            way=wording,
            document_id=content_id("doc", sha256),
            document_sha256=sha256,
            passage_id=content_id("pas", sha256, name),
            evidence=answer,
            evidence_span=span,
        )


def _sample(record: Record) -> Sample:
    """What a slip of this record is made from: the same fact in the other language is looked up by its file."""
    language, other = record.language, _OTHER[record.language]
    name = next(p.name for p in (EXAMPLES / language).glob("*.md") if record.answer in p.read_text(encoding="utf-8"))
    question = next(q for q in _questions(other).questions if q.id == record.question_id)
    return Sample(record.question, record.answer, _text(language, name), _answer(_text(other, name), question))


def _answer(passage: str, question: Question) -> str:
    found = re.search(question.key or "", passage)
    if found is None:
        raise SystemExit(f"question {question.id} has no answer in {passage[:60]!r}")
    start, end = sentence_around(passage, *found.span("key"))
    return passage[start:end].strip()


def _answered(record: Record, answer: str) -> Record:
    last = record.messages[-1].model_copy(update={"content": answer})
    return record.model_copy(update={"messages": [*record.messages[:-1], last]})


def _questions(language: Language) -> QuestionSet:
    text = (EXAMPLES / f"questions.{language}.yaml").read_text(encoding="utf-8")
    return QuestionSet.model_validate(yaml.safe_load(text))


def _text(language: Language, name: str) -> str:
    return (EXAMPLES / language / name).read_text(encoding="utf-8").strip()
