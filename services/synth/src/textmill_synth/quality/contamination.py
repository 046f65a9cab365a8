"""Finds training rows that give away what ``eval`` or ``heldout`` asks: in the same wording, or in other words.

In other words: same subject, same answer. The subject is in the words that tell documents apart, so a word weighs by
how few documents are asked about with it. What all wordings of a question have in common then weighs nothing.
"""

import math
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache

from textmill_synth.grounding import contains
from textmill_synth.quality.duplicates import Match
from textmill_synth.quality.rows import Row
from textmill_synth.quality.wording import Wording, likeness, swapped_names

_BUCKETS = 1 << 18
_BITS = 64
_TELLING = 0.25
"""The weight from which on a word is used to look rows up."""
_MOST_COMPARED = 32
_MOST_ROWS_A_WORD = 256


class DocumentFrequencies:
    """In how many documents' questions a word stands, in 2 MB for any number of words.

    Each word has a bitmap of 64 documents (linear counting, Whang 1990), so that past some 250 documents it counts as
    common. Words may share a bitmap, and then weigh less than they should.
    """

    def __init__(self) -> None:
        self._seen = array("Q", bytes(8 * _BUCKETS))
        self._all = 0

    def note(self, document_id: str, words: frozenset[str]) -> None:
        bit = 1 << zlib.crc32(document_id.encode()) % _BITS
        self._all |= bit
        for word in words:
            self._seen[zlib.crc32(word.encode()) % _BUCKETS] |= bit

    def weight(self, word: str) -> float:
        """From 1 for a word that no document has to 0 for one that all have."""
        if not self._all:
            return 1.0
        count = _distinct(self._seen[zlib.crc32(word.encode()) % _BUCKETS])
        return 1 - math.log1p(count) / math.log1p(_distinct(self._all))


class KnownWordings:
    """Questions that are not to be trained on as they stand. ``read`` gives back a row by its number."""

    def __init__(self, read: Callable[[int], Row]) -> None:
        self._read = read
        self._numbers: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))

    def add(self, number: int, row: Row) -> None:
        for key in row.keys:
            self._numbers[key].append(number)

    def closest(self, row: Row) -> Match | None:
        """The question most like this row's, if there is one about the same matter."""
        if not self._numbers:
            return None
        found = {n for key in row.keys for n in self._numbers.get(key, ())[:_MOST_COMPARED]}
        matches = [_match(self._read(n), likeness(row.question, self._read(n).question)) for n in sorted(found)]
        return max(matches, key=lambda match: match.similarity, default=None)


class KnownFacts:
    """What is asked and answered, to be found again in other words."""

    def __init__(self, read: Callable[[int], Row], frequencies: DocumentFrequencies) -> None:
        self._read = read
        self._weight = lru_cache(maxsize=1 << 16)(frequencies.weight)
        self._numbers: defaultdict[str, array[int]] = defaultdict(lambda: array("I"))

    def add(self, number: int, row: Row) -> None:
        for word in row.question.words:
            self._numbers[word].append(number)

    def closest(self, row: Row) -> Match | None:
        """The row most like this one in subject and answer: the mean of both."""
        if not self._numbers:
            return None
        found = self._candidates(row.question.words)
        matches = [_match(self._read(n), self._similarity(row, self._read(n))) for n in found]
        return max(matches, key=lambda match: match.similarity, default=None)

    def _candidates(self, words: frozenset[str]) -> list[int]:
        """Rows that share telling words with these, those that share most first. Most rows have none."""
        votes: defaultdict[int, float] = defaultdict(float)
        for word in words:
            weight = self._weight(word) if word in self._numbers else 0.0
            if weight >= _TELLING:
                for number in self._numbers[word][:_MOST_ROWS_A_WORD]:
                    votes[number] += weight
        return sorted(votes, key=lambda number: (-votes[number], number))[:_MOST_COMPARED]

    def _similarity(self, mine: Row, theirs: Row) -> float:
        keys = theirs.record.key_facts
        if not all(contains(mine.record.answer, key) for key in keys):
            return 0.0
        if swapped_names(mine.question, theirs.question) or swapped_names(mine.answer, theirs.answer):
            return 0.0
        answers = 1.0 if keys else max(likeness(mine.answer, theirs.answer), _shared(mine.answer, theirs.answer))
        return (self._overlap(mine.question.words, theirs.question.words) + answers) / 2

    def _overlap(self, mine: frozenset[str], theirs: frozenset[str]) -> float:
        """The weight of what both have, of the mean of both. Words that no known question has say nothing.

        Of the largest of both instead, a tenth fewer Chinese paraphrases are found in the example's questions; of the
        smallest, 3 % of the rows on other subjects are taken for one.
        """
        known = [word for word in mine if word in self._numbers]
        total = sum(map(self._weight, known)) + sum(map(self._weight, theirs))
        return 2 * sum(map(self._weight, mine & theirs)) / total if total else 0.0


def _match(row: Row, similarity: float) -> Match:
    return Match(row.record.record_id, similarity)


def _shared(a: Wording, b: Wording) -> float:
    """The Jaccard similarity of the content words."""
    return len(a.words & b.words) / len(a.words | b.words) if a.words and b.words else 0.0


def _distinct(bitmap: int) -> float:
    """How many documents set these bits. A full map counts as one bit short of full."""
    empty = max(1, _BITS - bitmap.bit_count())
    return -_BITS * math.log(empty / _BITS)
