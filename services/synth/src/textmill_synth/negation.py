"""Finds a "not" that the answer added to what the passage says, or took away from it.

What counts is what is negated: the words behind the "not", up to the end of its clause. "Not X, but Y" and "Y, not X"
say the same; "not X" and "X" don't.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from textmill_synth.checks import Candidate, Finding
from textmill_synth.reading import Reading, Unit, read
from textmill_synth.terms import Term

SCOPE_TERMS = 8
MIN_SHARED = 0.7
"""The share of a negation's scope that a clause must have to speak of the same thing."""
_INTERJECTION = re.compile(
    r"^\s*(?:(?:no|yes)\b\s*[,;.:]\s*)?not\b|^\s*(?:no|yes)\b\s*[,;.:]|^\s*(?:没有|不是|不可以|不能|不会|不行|不算|不|是的|可以|算)[，。；,]",
    re.IGNORECASE,
)
_RESTRICTS = re.compile(r"\b(?:only|unless|except|hardly|barely|fewer|less)\b|只|仅|除非|除了|才", re.IGNORECASE)
_PREFIXES = ("un", "in", "im", "non", "dis")


@dataclass(frozen=True)
class Negated:
    """``scope`` is what the negation negates, ``clause`` all that its clause says, ``subject`` the name before it.

    ``elliptic``: a "but not" with no verb of its own.
    """

    word: str
    scope: tuple[str, ...]
    clause: Unit
    subject: str | None
    elliptic: bool = False

    def same(self, other: "Negated") -> bool:
        """Whether both negate the same thing, in whatever words around it."""
        shared = len(set(self.scope) & set(other.scope))
        return shared >= MIN_SHARED * min(len(self.scope), len(other.scope))

    def shares_subject(self, other: "Negated") -> bool:
        """Whether both are about the same name, as far as they have one."""
        return None in (self.subject, other.subject) or self.subject == other.subject

    @property
    def is_slight(self) -> bool:
        """Whether nothing but one Chinese character, half a word, or a bare number is negated."""
        return len(self.scope) == 1 and (not self.scope[0].isascii() or self.scope[0].startswith("#"))

    def stands_in(self, clause: Unit) -> bool:
        """Whether the clause has most of the negated one: "hotel costs aren't refunded" has "but not hotel costs"."""
        own = self.clause.key_set
        return len(own & clause.key_set) >= MIN_SHARED * len(own)

    def said_in(self, clause: Unit) -> bool:
        """Whether the clause has what is negated: its first words, and most of the rest."""
        if self.scope[0] not in clause.key_set:
            return False
        return sum(key in clause.key_set for key in self.scope) >= MIN_SHARED * len(self.scope)


def negation_changed(candidate: Candidate) -> Finding | None:
    """A "not" that the passage hasn't, or that the answer should have."""
    if candidate.answer.rstrip() in candidate.passage:
        return None
    passage, answer = read(candidate.passage), read(_INTERJECTION.sub("", candidate.answer))
    there, here = _negated(candidate.passage), tuple(_negations(answer, passage.names))
    for negation in here:
        if _is_added(negation, passage, there):
            return Finding("negation", f"{negation.word!r} is in the answer and not in the sentence it comes from")
    if _RESTRICTS.search(candidate.answer):
        return None
    for negation in there:
        if _is_removed(negation, answer, here, passage):
            return Finding("negation", f"the passage says {negation.word!r} of this: {' '.join(negation.scope)!r}")
    return None


def _is_added(negation: Negated, passage: Reading, there: tuple[Negated, ...]) -> bool:
    heavy = tuple(other for other in there if negation.is_slight or not other.is_slight)
    if any(negation.shares_subject(o) and (negation.same(o) or o.said_in(negation.clause)) for o in heavy):
        return False
    if any(negation.shares_subject(o) and o.stands_in(negation.clause) for o in there):
        return False
    known = [t for t in negation.clause.terms if t.kind != "not" and t.key in passage.content]
    affirmed = [c for c in passage.phrases if negation.scope[0] in c.key_set and all(t.kind != "not" for t in c.terms)]
    if any(2 * sum(t.key in c.key_set for t in known) >= len(known) for c in affirmed):
        return True
    if any(negation.same(other) for other in heavy):
        return False
    closest = max(passage.sentences, key=lambda s: sum(t.key in s.key_set for t in known), default=None)
    return closest is None or all(t.kind != "not" for t in closest.terms)


def _is_removed(negation: Negated, answer: Reading, here: tuple[Negated, ...], passage: Reading) -> bool:
    if any(negation.same(other) or (other.word != "without" and negation.said_in(other.clause)) for other in here):
        return False
    for clause in (*answer.clauses, *answer.sentences):
        if not negation.said_in(clause) or _has_prefixed(negation, answer):
            continue
        # A bare "the rule on receipts" says neither.
        if negation.elliptic and clause.key_set <= set(negation.scope):
            continue
        if negation.is_slight and len(negation.clause.key_set & clause.key_set) < 2:
            continue
        names = clause.key_set & passage.names
        if names and negation.subject is not None and negation.subject not in names:
            continue
        if not _affirmed_elsewhere(negation, clause, passage):
            return True
    return False


def _affirmed_elsewhere(negation: Negated, clause: Unit, passage: Reading) -> bool:
    """Whether another clause of the passage, without the "not", is closer to the answer's than the negated one."""
    others = (c for c in passage.clauses if c is not negation.clause and negation.said_in(c))
    own = len(clause.key_set & negation.clause.key_set)
    return any(len(clause.key_set & c.key_set) > own for c in others if all(t.kind != "not" for t in c.terms))


def _has_prefixed(negation: Negated, answer: Reading) -> bool:
    """Whether the answer says "invalid" for "not valid"."""
    return any(f"{prefix}{key}" in answer.content for prefix in _PREFIXES for key in negation.scope)


@lru_cache(maxsize=512)
def _negated(passage: str) -> tuple[Negated, ...]:
    reading = read(passage)
    return tuple(_negations(reading, reading.names))


def _negations(reading: Reading, names: frozenset[str]) -> Iterator[Negated]:
    behind_but = {term for but, term in pairwise(reading.terms) if but.key == "but"}
    for clause in reading.clauses:
        for place, term in enumerate(clause.terms):
            if term.kind == "not" and (scope := tuple(_scope(clause, place))):
                yield Negated(term.key, scope, clause, _subject(reading, term, names), term in behind_but)


def _scope(clause: Unit, place: int) -> Iterator[str]:
    """What stands behind the negation, up to the next one."""
    for term in clause.terms[place + 1 : place + 1 + SCOPE_TERMS]:
        if term.kind == "not":
            return
        if term.kind != "role":
            yield term.key


def _subject(reading: Reading, negation: Term, names: frozenset[str]) -> str | None:
    """The last name before the negation in its sentence."""
    sentence = next((s for s in reading.sentences if negation in s.terms), None)
    before = [t for t in sentence.terms if t.key in names and t.start < negation.start] if sentence else []
    return before[-1].key if before else None
