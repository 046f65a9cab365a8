"""Reads a text as the checks need it: terms in clauses in sentences. A passage is read once for all its answers.

What the terms mean to each other is for ``roles`` and ``negation``.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from textmill_synth.dates import Date, date_spans
from textmill_synth.sentences import sentence_spans
from textmill_synth.terms import Term, terms_of

_CLAUSE_MARKS = frozenset(",;，；、—–")
_CONJUNCTIONS = frozenset(["and", "but", "while", "whereas", "yet"])


@dataclass(frozen=True, eq=False, slots=True)
class Unit:
    """A clause or a sentence: its terms but for the marks and the glue, in order. Equal to itself alone."""

    terms: tuple[Term, ...]
    keys: tuple[str, ...]
    key_set: frozenset[str]
    """What is said, whoever does it to whom: without the roles."""
    span: tuple[int, int]
    repeats: bool
    """Whether something is said twice."""

    @classmethod
    def of(cls, terms: Sequence[Term]) -> "Unit":
        keys = tuple([t.key for t in terms])
        said = [t.key for t in terms if t.kind not in ("role", "not")]
        key_set = frozenset(said)
        return cls(tuple(terms), keys, key_set, (terms[0].start, terms[-1].end), len(said) > len(key_set))

    def overlaps(self, span: tuple[int, int]) -> bool:
        return self.span[0] < span[1] and span[0] < self.span[1]

    def encloses(self, other: "Unit") -> bool:
        return self.span[0] <= other.span[0] and other.span[1] <= self.span[1]


@dataclass(frozen=True, eq=False)
class Reading:
    """``terms`` are all of the text's, marks and glue too. ``clauses`` are cut at "and" too, ``phrases`` aren't."""

    terms: tuple[Term, ...]
    clauses: tuple[Unit, ...]
    phrases: tuple[Unit, ...]
    sentences: tuple[Unit, ...]
    dates: dict[str, Date]

    @property
    def levels(self) -> tuple[tuple[Unit, ...], ...]:
        """The text in ever wider units."""
        return self.clauses, self.phrases, self.sentences

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(dict.fromkeys(unit for level in self.levels for unit in level))

    @cached_property
    def units_in(self) -> dict[Unit, tuple[Unit, ...]]:
        """The units of each sentence, itself included."""
        return {s: tuple(u for u in self.units if s.encloses(u)) for s in self.sentences}

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(t.key for t in self.terms if t.kind == "name")

    @cached_property
    def content(self) -> frozenset[str]:
        """The keys that say something by themselves."""
        return frozenset(t.key for t in self.terms if t.kind not in ("glue", "role", "mark"))

    def dates_like(self, date: Date) -> list[str]:
        """The keys of the text's dates that agree with the given one, which may leave out the year."""
        return [key for key, known in self.dates.items() if date.agrees(known)]

    @cached_property
    def counted(self) -> frozenset[tuple[str, str]]:
        """Each number with the word that it counts, be it with a unit of one letter and an "of" between."""
        terms = [t for t in self.terms if t.kind != "glue" or t.key == "a" or (len(t.key) > 1 and t.key != "of")]
        pairs = pairwise(terms)
        return frozenset((n.key, word.key) for n, word in pairs if n.kind == "number" and word.kind in ("word", "name"))

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Where each key stands among the terms."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(self._keys):
            places[key].append(place)
        return places

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        return tuple(t.key for t in self.terms)

    def neighbours(self, run: Sequence[str]) -> tuple[set[str], set[str]]:
        """The keys that stand right before and right after the run, wherever it is in the text."""
        before, after, wanted = set(), set(), tuple(run)
        for place in self.places.get(run[0], ()):
            end = place + len(run)
            if self._keys[place:end] == wanted:
                before |= set(self._keys[place - 1 : place])
                after |= set(self._keys[end : end + 1])
        return before, after


@lru_cache(maxsize=512)
def read(text: str) -> Reading:
    """Read a text. Costs about a millisecond for 600 characters; remembered for the last 512 texts."""
    terms = terms_of(text)
    sentences = list(_sentences(text, terms))
    same: dict[tuple[int, int], Unit] = {}
    clauses, phrases, whole = (
        tuple(same.setdefault(u.span, u) for u in _units(sentences, cuts))
        for cuts in (_CONJUNCTIONS, frozenset[str](), None)
    )
    dates = {f"@{date}": date for _, _, date in date_spans(text)}
    return Reading(tuple(terms), clauses, phrases, whole, dates)


def _sentences(text: str, terms: Sequence[Term]) -> Iterator[Sequence[Term]]:
    place = 0
    for _, end in sentence_spans(text):
        start = place
        while place < len(terms) and terms[place].start < end:
            place += 1
        yield terms[start:place]


def _units(sentences: Iterable[Sequence[Term]], conjunctions: frozenset[str] | None) -> Iterator[Unit]:
    """The stretches between the sentences' marks, and between the conjunctions given. None: the sentences whole."""
    for terms in sentences:
        start = 0
        for end in range(len(terms) + 1):
            if end < len(terms) and (conjunctions is None or not _cuts(terms[end], conjunctions)):
                continue
            content = [t for t in terms[start:end] if t.kind not in ("glue", "mark")]
            if content:
                yield Unit.of(content)
            start = end


def _cuts(term: Term, conjunctions: frozenset[str]) -> bool:
    return (term.kind == "mark" and term.key in _CLAUSE_MARKS) or term.key in conjunctions
