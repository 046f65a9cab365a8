"""Counts what a split is made of, and says in plain words where it is lopsided."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from textmill.contracts.datasets import Axis, Record, Split, Strategy
from textmill.contracts.documents import Language
from textmill.contracts.quality import Balance, Lengths

SHORT_ANSWER = 20
_SHORT_SHARE = 0.9
_RARE_LANGUAGE = 0.05
_LARGE_DOCUMENT = 0.5
_DROPPED_SHARE = 0.2
_ENOUGH_ROWS = 20
"""Below this nothing is said of shares."""


@dataclass
class LengthTally:
    """Lengths of texts in characters, as they come."""

    texts: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    short: int = 0
    bins: Counter[int] = field(default_factory=Counter)

    def note(self, text: str) -> None:
        size = len(text)
        self.least = min(self.least, size) if self.texts else size
        self.most = max(self.most, size)
        self.texts += 1
        self.total += size
        self.short += size < SHORT_ANSWER
        self.bins[1 << size.bit_length()] += 1

    def lengths(self) -> Lengths:
        mean = round(self.total / self.texts, 1) if self.texts else 0.0
        histogram = dict(sorted(self.bins.items()))
        return Lengths(least=self.least, mean=mean, most=self.most, histogram=histogram, under_20=self.short)


@dataclass
class BalanceTally:
    """Of the rows of one split. Memory holds 8 bytes and a set's place for each answer."""

    questions: LengthTally = field(default_factory=LengthTally)
    answers: LengthTally = field(default_factory=LengthTally)
    languages: Counter[Language] = field(default_factory=Counter)
    strategies: Counter[Strategy] = field(default_factory=Counter)
    axes: Counter[Axis] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    rows_by_document: Counter[str] = field(default_factory=Counter)
    answers_by_document: Counter[str] = field(default_factory=Counter)
    _seen: set[int] = field(default_factory=set)

    def note(self, record: Record) -> None:
        self.questions.note(record.question)
        self.answers.note(record.answer)
        self.languages[record.language] += 1
        self.strategies[record.strategy] += 1
        self.axes[record.axis] += 1
        self.ways[record.way] += 1
        self.rows_by_document[record.document_id] += 1
        answer = _hash64(f"{record.document_id} {record.answer}")
        if answer not in self._seen:
            self._seen.add(answer)
            self.answers_by_document[record.document_id] += 1

    def balance(self) -> Balance:
        return Balance(
            rows=self.questions.texts,
            answers=len(self._seen),
            question_lengths=self.questions.lengths(),
            answer_lengths=self.answers.lengths(),
            languages=dict(sorted(self.languages.items())),
            strategies=dict(sorted(self.strategies.items())),
            axes=dict(sorted(self.axes.items())),
            ways=dict(sorted(self.ways.items())),
            answers_per_document=dict(sorted(Counter(self.answers_by_document.values()).items())),
            largest_document_rows=max(self.rows_by_document.values(), default=0),
        )


def warnings(
    balance: Mapping[Split, Balance], rows_made: int, dropped: Mapping[str, int], findings: Mapping[str, int]
) -> Iterator[str]:
    """Sentences for the owner, of what is worth a look before training."""
    train = balance["train"]
    if train.rows == 0:
        yield "No row is left to train on."
    if train.rows >= _ENOUGH_ROWS:
        yield from _lopsided(train)
    if sum(dropped.values()) > _DROPPED_SHARE * rows_made:
        share = f"{sum(dropped.values())} of {rows_made} rows"
        yield f"{share} were dropped, most as {max(sorted(dropped), key=dropped.__getitem__)}."
    if findings.get("conflict"):
        yield f"Rows that answer nearly the same question in another way than an earlier row: {findings['conflict']}."
    if findings.get("pii"):
        yield f"Rows that hold what looks like personal data, and stay in the dataset: {findings['pii']}."
    if findings.get("refusal"):
        yield f"Rows whose answer reads like a refusal: {findings['refusal']}."


def _lopsided(train: Balance) -> Iterator[str]:
    if train.answer_lengths.under_20 >= _SHORT_SHARE * train.rows:
        share = _percent(train.answer_lengths.under_20, train.rows)
        yield f"{share} of the rows to train on have answers under {SHORT_ANSWER} characters."
    for language, rows in train.languages.items():
        if rows < _RARE_LANGUAGE * train.rows:
            yield f"Only {_percent(rows, train.rows)} of the rows to train on are in the language {language!r}."
    if len(train.ways) == 1:
        yield f"Every question is asked in one way only, {next(iter(train.ways))!r}."
    documents = sum(train.answers_per_document.values())
    if documents > 2 and train.largest_document_rows > _LARGE_DOCUMENT * train.rows:
        share = _percent(train.largest_document_rows, train.rows)
        yield f"One of {documents} documents has {share} of the rows to train on."


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
