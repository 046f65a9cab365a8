"""Finds answers that use the passage's own names and numbers in the wrong place: "A gave B" said as "B gave A".

An answer's clause is laid beside the clauses of the passage. Where one of them says the same with another name or
number in that place, and no clause says what the answer says, the answer has swapped them. Words of the answer's own
bear no witness: whether there are too many of those is another check's matter.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from textmill_synth.alignment import COPULAS, Run, blocks, differences
from textmill_synth.checks import Candidate, Finding
from textmill_synth.reading import Reading, Unit, read
from textmill_synth.rivals import MAX_FIGURE_TERMS, MIN_SHARED_WORDS, Pair, are_parallel, is_person
from textmill_synth.terms import Term

MIN_SHARED = 0.5
"""The share of an answer's clause that a clause of the passage must have for the two to be laid side by side..."""
MIN_RESTATED = 0.8
"""... or the share of the passage's clause that the answer's must have."""
MIN_WITNESS = 0.5
"""A clause that the answer restates clears it of a charge that rests on no more than twice as many words."""
MIN_COPIED = 0.7
"""A clause that has this share of the passage's, and all but two words in order, is a copy with the two exchanged."""
MIN_CLOSE = 0.8
"""Without evidence, sentences that share this part of what the closest one shares are taken for its source, too."""
_PRONOUN = re.compile(r"(?:he|she|they)\b|[他她]", re.IGNORECASE)
_VOICES = frozenset(["be", "by", "from", "with", "被", "由", "是"])


@dataclass(frozen=True)
class Charge:
    """``own`` of the answer stands where ``unit`` of the passage has ``other``."""

    unit: Unit
    own: Run
    other: Run
    invented: bool

    @property
    def finding(self) -> Finding:
        detail = f"{self.own.text!r} stands where the passage has {self.other.text!r}"
        return Finding("ungrounded_name" if self.invented else "swapped", detail)

    @property
    def missed(self) -> frozenset[str]:
        """What the answer should have said: a number with what it counts."""
        counted = self.other.after if self.other.kinds == {"number"} and len(self.other.keys) == 1 else None
        return frozenset((*self.other.keys, counted) if counted else self.other.keys)

    @property
    def framed(self) -> bool:
        """Whether a figure is in question, and the words on both sides of it are the same."""
        same = self.own.before == self.other.before and self.own.after == self.other.after
        return same and self.own.is_figure and None not in (self.own.before, self.own.after)

    @property
    def typed(self) -> bool:
        """Whether a figure or a name is in question, and no other word."""
        return self.own.is_figure or "name" in self.own.kinds or is_person(self.own)


@dataclass(frozen=True)
class Sources:
    """``accusers`` are the units that the answer is laid beside; ``evidence`` is the span that it names."""

    passage: Reading
    accusers: Sequence[Unit]
    evidence: tuple[int, int] | None

    def name_only(self, unit: Unit, others: Sequence[Unit]) -> bool:
        """Whether the answer names the unit as its evidence, and none of the others."""
        return self._is_named(unit) and not any(self._is_named(other) for other in others)

    def contradict(self, charge: Charge, known: frozenset[str], others: Sequence[Unit]) -> bool:
        """Whether the clause named as evidence has another figure, whatever clauses elsewhere say."""
        copied = known - set(charge.own.keys) <= charge.unit.key_set and charge.unit in self.passage.clauses
        return charge.framed and copied and self.name_only(charge.unit, others)

    def are_named(self, units: Sequence[Unit]) -> bool:
        """Whether the answer names one of the units as its evidence, or names none at all."""
        return self.evidence is None or any(self._is_named(unit) for unit in units)

    def _is_named(self, unit: Unit) -> bool:
        return self.evidence is not None and unit.overlaps(self.evidence)


def swapped(candidate: Candidate) -> Finding | None:
    """A name, number or date of the passage where the passage has another one."""
    if candidate.answer.rstrip() in candidate.passage:
        return None
    passage, answer = read(candidate.passage), read(candidate.answer)
    finding = _misfitted_number(passage, answer) or _wrong_antecedent(candidate, passage, answer)
    if finding:
        return finding
    sources = Sources(passage, _accusers(candidate, passage, answer), candidate.evidence)
    bearers: tuple[Unit, ...] = ()
    judged: set[Unit] = set()
    for said_units, wider in zip(answer.levels, passage.levels, strict=True):
        bearers += wider
        fresh = [unit for unit in said_units if unit not in judged]
        finding = _first_misplaced([_known(u, answer, passage) for u in fresh], bearers, sources, not judged)
        if finding:
            return finding
        judged.update(fresh)
    return None


def _first_misplaced(said: list[Unit], bearers: Sequence[Unit], sources: Sources, narrow: bool) -> Finding | None:
    verdicts = [_misplaced(unit, bearers, sources, narrow) for unit in said]
    if not any(verdicts):
        return None
    right = [u for u in said if any(_holds(b, u, u.key_set & sources.passage.content) for b in bearers)]
    quoted = _quoted(said, sources.passage)
    for verdict in chain.from_iterable(verdicts):
        if isinstance(verdict, Finding):
            return verdict
        # What the answer says rightly elsewhere can't be what it left out here.
        if not quoted.issuperset(verdict.own.keys) and not any(verdict.missed < unit.key_set for unit in right):
            return verdict.finding
    return None


def _quoted(said: Sequence[Unit], passage: Reading) -> frozenset[str]:
    """The keys of the passage's sentences that the answer has whole and in order, as after "It has ..." in them."""
    texts = [f" {' '.join(_without_copulas(unit))} " for unit in said]
    sentences = [_without_copulas(s) for s in passage.sentences]
    whole = [keys for keys in sentences if len(keys) > 2 and any(f" {' '.join(keys)} " in text for text in texts)]
    return frozenset(chain.from_iterable(whole))


def _without_copulas(unit: Unit) -> list[str]:
    return [key for key in unit.keys if key not in COPULAS]


def _misfitted_number(passage: Reading, answer: Reading) -> Finding | None:
    """A number before a word that the passage puts other numbers before, e.g. 90 months for 90 days and 12 months."""
    for number, counted in answer.counted - passage.counted:
        if any(n == number for n, _ in passage.counted) and any(word == counted for _, word in passage.counted):
            return Finding("swapped", f"{number.strip('#')!r} is not the number of {counted!r} in the passage")
    return None


def _wrong_antecedent(candidate: Candidate, passage: Reading, answer: Reading) -> Finding | None:
    """A name for the evidence's "he" or "she" that the sentence before doesn't have."""
    if candidate.evidence is None or not _PRONOUN.match(candidate.passage, candidate.evidence[0]):
        return None
    before = [s for s in passage.sentences if s.terms[0].start < candidate.evidence[1]][-2:]
    known = read(candidate.question).content.union(*(s.key_set for s in before))
    names = [t.key for t in answer.terms if t.key in passage.names and t.key not in known]
    return Finding("swapped", f"{names[0]!r} is not who the passage speaks of there") if names else None


def _accusers(candidate: Candidate, passage: Reading, answer: Reading) -> list[Unit]:
    """The units of the sentences that the answer comes from: its evidence's, or the closest to it and its question."""
    if candidate.evidence:
        sources = [s for s in passage.sentences if s.overlaps(candidate.evidence)]
    else:
        wanted = answer.content | read(candidate.question).content
        shared = [len(wanted & s.key_set) for s in passage.sentences]
        sources = [s for s, n in zip(passage.sentences, shared, strict=True) if n and n >= MIN_CLOSE * max(shared)]
    return [unit for sentence in sources for unit in passage.units_in[sentence]]


def _known(said: Unit, answer: Reading, passage: Reading) -> Unit:
    """The unit with its dates as the passage writes them, and its names as the passage knows them."""
    if not any(t.kind == "date" or (t.kind == "word" and t.key in passage.names) for t in said.terms):
        return said
    terms: list[Term] = []
    for term in said.terms:
        if term.kind == "date" and term.key not in passage.content:
            term = term._replace(key=next(iter(passage.dates_like(answer.dates[term.key])), term.key))
        terms.append(term._replace(kind="name") if term.key in passage.names else term)
    return Unit.of(terms)


def _misplaced(said: Unit, bearers: Sequence[Unit], sources: Sources, narrow: bool) -> Sequence[Charge | Finding]:
    """What clauses of the passage have in its place, unless another clause bears the answer out."""
    passage = sources.passage
    known = said.key_set & passage.content
    if len(known) < 2:
        return ()
    holding = [u for u in bearers if known <= u.key_set and _holds(u, said, known)]
    turned = _turned_in_all(said, holding, passage) if holding else ()
    if turned or (holding and sources.are_named(holding) and known == said.key_set):
        return turned
    charges = [c for unit in sources.accusers for c in _charges(said, known, unit, passage) if narrow or c.typed]
    if holding:
        return [c for c in charges if c.invented or sources.contradict(c, known, holding)]
    charged = {c.unit for c in charges}
    standing = [c for c in charges if not _is_cleared(c, known, charged, sources)]
    return standing or _turned_in_all(said, [u for u in passage.units if _holds(u, said, known)], passage)


def _is_cleared(charge: Charge, known: frozenset[str], charged: set[Unit], sources: Sources) -> bool:
    witnesses = (w for w in sources.passage.clauses if w != charge.unit and not sources.name_only(charge.unit, [w]))
    return any(_clears(w, charge, known, w in charged) for w in witnesses)


def _holds(unit: Unit, said: Unit, known: frozenset[str]) -> bool:
    """Whether the unit has all that is said, as often: a Chinese character may stand in two words."""
    if not known <= unit.key_set:
        return False
    return not said.repeats or not Counter(k for k in said.keys if k in known) - Counter(unit.keys)


def _clears(witness: Unit, charge: Charge, known: frozenset[str], charged: bool) -> bool:
    """Whether another clause shows that the answer only puts things its own way."""
    accused, borne_out, own = known & charge.unit.key_set, known & witness.key_set, frozenset(charge.own.keys)
    if not charged and accused < borne_out and not charge.unit.encloses(witness):
        return True
    if not own <= witness.key_set:
        return False
    # What is said of a subject that the passage names once: "..., and is no bird of passage".
    if charge.own.after is None and not charge.typed and 2 * len(own) >= len(witness.key_set):
        return True
    return not charged and witness.key_set <= known and len(witness.key_set - own) >= MIN_WITNESS * len(accused)


def _charges(said: Unit, known: frozenset[str], unit: Unit, passage: Reading) -> Iterator[Charge]:
    """What of the answer's clause takes the place of something like it in the passage's."""
    shared = known & unit.key_set
    # Only a Chinese name that nobody knows can hide in a clause that has all that is known of the answer's.
    if not shared or (shared == known and all(key.isascii() for key in said.key_set)):
        return
    own_runs, other_runs = differences(said, unit)
    for own in own_runs:
        rest = len(known - set(own.keys) | shared)
        full = len(shared) == rest
        covered = len(shared) >= max(MIN_SHARED * rest, len(own.keys) / 2)
        for other in other_runs:
            rest_of_unit = len(unit.key_set) - len(other.keys)
            restated = len(shared) >= max(2, MIN_RESTATED * rest_of_unit)
            # A clause restated to the last word is enough, however short.
            wholly = len(shared) == rest_of_unit and (full or own.is_figure)
            if covered or restated or wholly:
                weight = sum(1 if key.isascii() else 0.5 for key in shared)
                pair = Pair(own, other, full, max(weight, MIN_SHARED_WORDS) if wholly else weight, passage)
                if pair.are_rivals() or pair.is_invented():
                    yield Charge(unit, own, other, invented=not pair.are_rivals())


def _turned_in_all(said: Unit, holding: Sequence[Unit], passage: Reading) -> Sequence[Finding]:
    """The finding when each unit that has all the words has them in another order."""
    turned: list[Finding] = []
    for unit in holding:
        finding = _turned_round(said, unit, passage)
        if finding is None:
            return ()
        turned.append(finding)
    return turned[:1]


def _turned_round(said: Unit, unit: Unit, passage: Reading) -> Finding | None:
    """Two of the passage's words that have changed places, with what is between them left where it was."""
    if _VOICES & set(said.keys) != _VOICES & set(unit.keys):
        return None
    terms = [t for t in said.terms if t.key in unit.key_set]
    source = [t for t in unit.terms if t.kind not in ("role", "not")]
    stretches = list(blocks([t.key for t in terms], [t.key for t in source]))
    moved = [(here, there) for here, there in zip(stretches, sorted(stretches), strict=True) if here != there]
    if len(moved) != 2:
        return None
    (at, start, first_end), (_, last_start, end) = moved[0][0], moved[1][0]
    first, last = Run.of(terms[start:first_end]), Run.of(terms[last_start:end])
    between = terms[first_end:last_start]
    if not _like_long(first, last):
        return None
    joined = _roles(said, first.terms[-1], last.terms[0]) & _roles(unit, source[moved[1][0][0]], source[at])
    copied = len(terms) >= MIN_COPIED * len(source)
    if (not between and joined) or (between and (copied or _interchangeable(first, last, passage))):
        return Finding("swapped", f"{first.text!r} and {last.text!r} have changed places")
    return None


def _like_long(first: Run, last: Run) -> bool:
    if not first.is_latin:
        return True
    named = first.kinds == last.kinds == {"name"}
    return len(first.keys) <= MAX_FIGURE_TERMS and (named or len(first.keys) == len(last.keys))


def _roles(unit: Unit, start: Term, end: Term) -> set[str]:
    """The roles between two terms of the unit, but for "is"."""
    return {t.key for t in unit.terms if t.kind == "role" and start.end <= t.start < end.start} - {"be", "是"}


def _interchangeable(first: Run, last: Run, passage: Reading) -> bool:
    if first.kinds == last.kinds and first.kinds <= {"name", "number", "date"}:
        return True
    if is_person(first) and is_person(last):
        return True
    return len(first.keys) == len(last.keys) and are_parallel(first, last, passage)
