"""Says how much alike two wordings are, and whether one is too near to any of those that there are."""

from collections.abc import Iterable
from functools import lru_cache

from textmill_synth.numerals import numbers
from textmill_synth.topics import Phrasing, normal_form

HELD_OUT_SIMILARITY = 0.8
"""A training wording this much like a held-out one would make the exam one of memory."""


def similarity(first: str, second: str) -> float:
    """From 0 to 1: the share of three-character runs that two normal forms have in common (Jaccard)."""
    if first == second:
        return 1.0
    mine, theirs = _trigrams(first), _trigrams(second)
    common = len(mine & theirs)
    return common / (len(mine) + len(theirs) - common)


def nearest(form: str, others: Iterable[str], floor: float = 0.0) -> float:
    """The greatest similarity to any of the normal forms; 0 where none can be as great as ``floor``.

    It can't where one has so many more runs than the other.
    """
    runs = len(_trigrams(form))
    comparable = (o for o in others if floor * runs <= len(_trigrams(o)) and floor * len(_trigrams(o)) <= runs)
    return max((similarity(form, other) for other in comparable), default=0.0)


class Wordings:
    """The wordings of one question so far.

    A slip of the pen is compared with other slips alone: it is meant to be near. Different numbers make different
    questions, however much alike.
    """

    def __init__(self, threshold: float, held_out: Iterable[Phrasing]) -> None:
        self._threshold = threshold
        self._held_out = [normal_form(p.said) for p in held_out]
        self._forms: dict[str, tuple[bool, frozenset[str]]] = {}

    def add(self, phrasing: Phrasing) -> None:
        self._forms[normal_form(phrasing.said)] = _kind(phrasing)

    def clash(self, phrasing: Phrasing) -> tuple[str, float, float] | None:
        """The rule by which the wording can't be trained on besides the others, how much alike it is, the threshold."""
        form, kind = normal_form(phrasing.said), _kind(phrasing)
        limit = min(HELD_OUT_SIMILARITY, self._threshold)
        held = 1.0 if any(h in form for h in self._held_out) else nearest(form, self._held_out, limit)
        if held >= limit:
            return "held_out", held, limit
        same_kind = (other for other, of_kind in self._forms.items() if of_kind == kind)
        alike = 1.0 if form in self._forms else nearest(form, same_kind, self._threshold)
        return ("near_duplicate", alike, self._threshold) if alike >= self._threshold else None


def _kind(phrasing: Phrasing) -> tuple[bool, frozenset[str]]:
    return phrasing.axis == "typo", numbers_in(phrasing.said)


@lru_cache(maxsize=4096)
def numbers_in(text: str) -> frozenset[str]:
    """``numbers``, remembered: the same few wordings are looked at again and again."""
    return frozenset(numbers(text))


@lru_cache(maxsize=4096)
def _trigrams(form: str) -> frozenset[str]:
    padded = f"  {form} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))
