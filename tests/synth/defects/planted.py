"""A set of answers with planted defects, and of good ones, to measure the checks with.

The passages, questions and answers are written by hand, in Chinese and English, in eight genres; they are meant to
look like what an owner's text and an LLM bring, not like what the checks look for. Only what a machine does to an
answer (cutting it off, blowing it up) is done by a machine here.

The set has three parts. The checks were first written with the "open" half alone; then they were bettered with the
"held back" half (by the hash of the id), and at last with the "fresh" passages. So no part is unseen any more: the
shares at first sight, which tell more of answers to come, are in ``bench/checks.py``. To learn how the checks do on new
text, write new passages, judge them before anything is changed, and add them as another part.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from textmill.contracts.documents import Language
from textmill_synth.checks import Candidate, Finding, first_finding
from textmill_synth.evidence import evidence_missing, locate_evidence
from textmill_synth.grounding import ALL_CHECKS

FOLDER = Path(__file__).parent
LANGUAGES: tuple[Language, ...] = ("en", "zh")
REASONS: dict[str, frozenset[str]] = {
    "empty": frozenset({"empty"}),
    "truncated": frozenset({"truncated", "format"}),
    "whitespace_loop": frozenset({"repetition"}),
    "repeated": frozenset({"repetition"}),
    "leaked_label": frozenset({"format"}),
    "prompt_echo": frozenset({"prompt_leak", "format"}),
    "question_echo": frozenset({"echo"}),
    "wrong_language": frozenset({"language"}),
    "refusal": frozenset({"refusal", "prompt_leak"}),
    "invented_number": frozenset({"ungrounded_number"}),
    "invented_date": frozenset({"ungrounded_number", "ungrounded_date"}),
    "invented_name": frozenset({"ungrounded_name", "ungrounded_words"}),
    "invented_words": frozenset({"ungrounded_words", "ungrounded_name"}),
    "swapped_number": frozenset({"swapped", "ungrounded_number", "negation"}),
    "swapped_date": frozenset({"swapped", "ungrounded_date"}),
    "swapped_name": frozenset({"swapped", "negation", "ungrounded_name"}),
    "negation_added": frozenset({"negation"}),
    "negation_removed": frozenset({"negation"}),
    "evidence": frozenset({"evidence_not_in_passage"}),
}
"""The reasons that are right for each kind of defect. A swap may move a "not" to another word, or be in a quotation."""
Part = Literal["open", "held back", "fresh"]
_BLANKS = (" ", "\n", "\t", "\u3000", " \n")
_NOTHING = ("", " ", "...", "。", "-", "\n\n", "——", "N/A", "“”", '""', "***", "?", "……", "、", "()", "null")


@dataclass(frozen=True)
class Planted:
    """``kind`` is "good" or what is wrong with the answer. ``evidence`` is the quotation that came with it."""

    id: str
    language: Language
    kind: str
    passage: str
    question: str
    answer: str
    evidence: str | None = None
    finish_reason: str = "stop"

    @property
    def part(self) -> Part:
        if self.id.split("-")[2] == "3":
            return "fresh"
        return "open" if hashlib.sha256(self.id.encode()).digest()[0] % 2 == 0 else "held back"


def good(language: Language) -> list[Planted]:
    return _read(f"good.{language}.jsonl")


def defects(language: Language) -> list[Planted]:
    return _read(f"defects.{language}.jsonl") + list(_mechanical(good(language)))


def instructions(language: Language) -> str:
    """The fixed words of the prompt that the answers are said to come from."""
    words: str = json.loads((FOLDER / "instructions.json").read_text(encoding="utf-8"))[language]
    return words


def judge(record: Planted, prompt: str) -> Finding | None:
    """What the code checks say, the evidence first, as synth does it."""
    span = locate_evidence(record.evidence, record.passage) if record.evidence else None
    if record.evidence and span is None:
        return evidence_missing(record.evidence)
    return first_finding(candidate(record, prompt, span), ALL_CHECKS)


def candidate(record: Planted, prompt: str, span: tuple[int, int] | None) -> Candidate:
    return Candidate(
        answer=record.answer,
        question=record.question,
        passage=record.passage,
        language=record.language,
        finish_reason=record.finish_reason,
        instructions=prompt,
        evidence=span,
    )


def rightly_judged(record: Planted, finding: Finding | None) -> bool:
    """A good record passes; a defect is rejected for a reason that fits it."""
    if record.kind == "good":
        return finding is None
    return finding is not None and finding.reason in REASONS[record.kind]


def _read(name: str) -> list[Planted]:
    passages = {p["id"]: p["text"] for p in _lines("passages.jsonl")}
    rows = (dict(row) for row in _lines(name))
    return [Planted(**{**row, "passage": passages[row["passage"]]}) for row in rows]  # type: ignore[arg-type]


def _lines(name: str) -> Iterator[dict[str, str]]:
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _mechanical(answers: Sequence[Planted]) -> Iterator[Planted]:
    """Per passage one answer cut off, one blown up with blanks, one said again and again, one that is nothing."""
    by_passage: dict[str, list[Planted]] = defaultdict(list)
    for answer in answers:
        by_passage[answer.passage].append(answer)
    for turn, same in enumerate(by_passage.values()):
        longest = max(same, key=lambda record: len(record.answer))
        middle = len(longest.answer) * 3 // 5
        head, tail = longest.answer[:middle].rstrip(" .,。，；、"), longest.answer[middle:]
        limit = "length" if turn % 2 else "stop"
        yield _broken(longest, "truncated", head, limit)
        yield _broken(longest, "whitespace_loop", head + _BLANKS[turn % len(_BLANKS)] * (9 + turn) + tail)
        yield _broken(longest, "repeated", " ".join([longest.answer] * (2 + turn % 4)))
        yield _broken(longest, "empty", _NOTHING[turn % len(_NOTHING)])


def _broken(record: Planted, kind: str, answer: str, finish_reason: str = "stop") -> Planted:
    return replace(record, id=f"{record.id}-{kind}", kind=kind, answer=answer, finish_reason=finish_reason)
