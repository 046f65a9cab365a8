"""Lays a clause of an answer beside one of the passage: what one has and the other hasn't, and what has moved.

By sets of terms, since a good answer may put them in another order; character by character where Chinese characters
repeat, since one character may be part of two words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from textmill_synth.reading import Unit
from textmill_synth.terms import Kind, Term

MAX_RUN = 8
_LISTING = frozenset("和与及")
COPULAS = ("be", "是")
_ASIDE = ("role", "not")


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """Neighbouring terms of a unit that the other side hasn't, between the shared keys ``before`` and ``after``."""

    terms: tuple[Term, ...]
    keys: tuple[str, ...]
    before: str | None
    after: str | None

    @classmethod
    def of(cls, terms: Sequence[Term], before: str | None = None, after: str | None = None) -> "Run":
        return cls(tuple(terms), tuple([t.key for t in terms]), before, after)

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset([t.kind for t in self.terms])

    @property
    def is_latin(self) -> bool:
        return all(key.isascii() for key in self.keys)

    @property
    def is_figure(self) -> bool:
        return self.terms[0].kind in ("number", "date")

    @property
    def text(self) -> str:
        return " ".join(key.strip("#@") for key in self.keys)


def differences(said: Unit, unit: Unit) -> tuple[list[Run], list[Run]]:
    """What the first has and the second hasn't, and the reverse, in stretches of up to ``MAX_RUN`` terms."""
    mine = [t for t in said.terms if t.key not in COPULAS]
    theirs = [t for t in unit.terms if t.key not in COPULAS]
    own, other = [t.key in unit.key_set for t in mine], [t.key in said.key_set for t in theirs]
    if _repeats_characters(said):
        own, other = [False] * len(mine), [False] * len(theirs)
        matcher = SequenceMatcher(None, [t.key for t in mine], [t.key for t in theirs], autojunk=False)
        for here, there, size in matcher.get_matching_blocks():
            own[here : here + size] = other[there : there + size] = [True] * size
    return list(_runs(mine, own)), list(_runs(theirs, other))


def blocks(said: Sequence[str], source: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Stretches of ``said`` that stand unbroken in ``source``: ``(place there, start, end here)``.

    Raises ``KeyError`` when ``source`` lacks one of the keys.
    """
    free: dict[str, list[int]] = {}
    for place, key in enumerate(source):
        free.setdefault(key, []).append(place)
    start, first, last = 0, -1, -2
    for here, key in enumerate(said):
        places = free[key]
        place = last + 1 if last + 1 in places else next((p for p in places if p > last), places[0])
        if len(places) > 1:
            places.remove(place)
        if place != last + 1:
            if here:
                yield first, start, here
            start, first = here, place
        last = place
    if said:
        yield first, start, len(said)


def _repeats_characters(unit: Unit) -> bool:
    return unit.repeats and not all(key.isascii() for key in unit.key_set)


def _runs(terms: Sequence[Term], shared: Sequence[bool]) -> Iterator[Run]:
    """The stretches that aren't shared, cut at roles, before each number or date and behind each date."""
    start, before = 0, None
    for place in range(len(terms) + 1):
        ends = place == len(terms) or shared[place] or terms[place].kind in _ASIDE
        if not ends and not _cuts(terms, start, place):
            continue
        if start < place and place - start <= MAX_RUN:
            yield Run.of(terms[start:place], before, _next_shared(terms, shared, place))
        start = place + 1 if ends else place
        if place < len(terms) and terms[place].key in _LISTING:
            before = None
        elif place < len(terms) and shared[place] and terms[place].kind not in _ASIDE:
            before = terms[place].key


def _next_shared(terms: Sequence[Term], shared: Sequence[bool], place: int) -> str | None:
    for at in range(place, len(terms)):
        if terms[at].key in _LISTING:
            return None
        if shared[at] and terms[at].kind not in _ASIDE:
            return terms[at].key
    return None


def _cuts(terms: Sequence[Term], start: int, place: int) -> bool:
    return place > start and (terms[place].kind in ("number", "date") or terms[place - 1].kind == "date")
