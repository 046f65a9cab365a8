"""Finds answers that use the passage's own names and numbers in the wrong place: "A gave B" said as "B gave A".

An answer's clause is laid beside the clauses of the passage. Where one of them says the same with another name or
number in that place, and no clause says what the answer says, the answer has swapped them. Words of the answer's own
bear no witness: whether there are too many of those is another check's matter.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from textmill_synth.checks import Candidate, Finding
from textmill_synth.terms import Reading, Term, Unit, read, stem

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
MAX_RUN = 8
MAX_NUMBER_RUN = 3
MAX_WORDS = 3
MIN_SHARED_WORDS = 1.5
"""How many words two clauses must share for others to be compared. A Chinese character is half a word."""
_OPPOSITE_LIST = """left right|upper lower|north south|east west|northern southern|eastern western|front rear|inner outer
buyer seller|tenant landlord|lessee lessor|lender borrower|employer employee|minimum maximum|左 右|前 后|上 下|东 西|南 北|内 外
甲 乙|出 承|买 卖|大 小|高 低|增 减|升 降|早 晚|春 秋|夏 冬|男 女|父 母|师 徒|雌 雄|进 出|入 出|收 付"""
_OPPOSITES = frozenset(frozenset(stem(w) for w in pair.split()) for pair in re.split(r"[|\n]", _OPPOSITE_LIST))
_PRONOUN = re.compile(r"(?:he|she|they)\b|[他她]", re.IGNORECASE)
_VOICES = frozenset("be by from with 被 由 是".split())
_LISTING = frozenset("和与及")
_PLACED = frozenset("至到在于往")
_SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程苏魏吕丁任沈姚卢姜崔钟"
    "谭陆汪范金石廖贾韦夏付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤鲁费倪殷毕安常傅齐康伍穆萧祁庞纪舒屈项祝阮蓝季强童颜梅盛樊凌霍虞柯管房"
)


@dataclass(frozen=True)
class Run:
    """Neighbouring terms of a unit that the other side hasn't, between the shared keys ``before`` and ``after``."""

    terms: tuple[Term, ...]
    before: str | None = None
    after: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(t.key for t in self.terms)

    @property
    def text(self) -> str:
        return " ".join(key.strip("#@") for key in self.keys)

    @property
    def kinds(self) -> set[str]:
        return {t.kind for t in self.terms}


@dataclass(frozen=True)
class Charge:
    """``own`` of the answer stands where ``unit`` of the passage has ``other``."""

    unit: Unit
    own: Run
    other: Run
    invented: bool = False

    @property
    def missed(self) -> frozenset[str]:
        """What the answer should have said: a number with what it counts."""
        bare = len(self.other.keys) == 1 and self.other.terms[0].kind == "number" and self.other.after is not None
        return frozenset((*self.other.keys, self.other.after) if bare and self.other.after else self.other.keys)

    @property
    def framed(self) -> bool:
        """Whether a figure is in question, and the words on both sides of it are the same."""
        same = self.own.before == self.other.before and self.own.after == self.other.after
        return same and None not in (self.own.before, self.own.after) and bool(self.own.kinds & {"number", "date"})

    @property
    def typed(self) -> bool:
        """Whether a figure or a name is in question, and no other word."""
        return bool(self.own.kinds & {"name", "number", "date"}) or _person(self.own)

    @property
    def finding(self) -> Finding:
        return Finding("ungrounded_name" if self.invented else "swapped", f"{self.own.text!r} stands where the passage has {self.other.text!r}")


@dataclass(frozen=True)
class Sources:
    """``accusers`` are the units that the answer can be laid beside; ``evidence`` is the span it names."""

    passage: Reading
    accusers: list[Unit]
    evidence: tuple[int, int] | None

    def names_only(self, unit: Unit, others: Sequence[Unit]) -> bool:
        """Whether the answer names the unit as its evidence, and none of the others."""
        return self._is_named(unit) and not any(self._is_named(other) for other in others)

    def contradict(self, charge: Charge, known: frozenset[str], others: Sequence[Unit]) -> bool:
        """Whether the clause named as evidence has another figure, whatever clauses elsewhere say."""
        copied = known - set(charge.own.keys) <= charge.unit.key_set and charge.unit in self.passage.clauses
        return copied and self.names_only(charge.unit, others)

    def _is_named(self, unit: Unit) -> bool:
        if self.evidence is None:
            return False
        return unit.terms[0].start < self.evidence[1] and self.evidence[0] < unit.terms[-1].end


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
    for said_units, wider in zip(answer.levels, passage.levels, strict=True):
        bearers += wider
        known = [_known(said, answer, passage) for said in said_units]
        judged = [_misplaced(said, bearers, sources, said_units is answer.clauses) for said in known]
        right = [s for s in known if any(_holds(u, s, s.key_set & passage.content) for u in bearers)]
        for verdict in judged:
            if isinstance(verdict, Finding):
                return verdict
            # What the answer says rightly elsewhere can't be what it left out here.
            if verdict and not any(verdict.missed < said.key_set for said in right):
                return verdict.finding
    return None


def _misfitted_number(passage: Reading, answer: Reading) -> Finding | None:
    """A number before a word that the passage puts other numbers before, e.g. 90 months for 90 days and 12 months."""
    pairs = passage.counted
    for number, counted in answer.counted:
        if (number, counted) in pairs or number not in passage.content:
            continue
        if any(n == number for n, _ in pairs) and any(c == counted for _, c in pairs):
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
        start, end = candidate.evidence
        sources = [s for s in passage.sentences if s.terms[0].start < end and start < s.terms[-1].end]
    else:
        wanted = answer.content | read(candidate.question).content
        shared = [len(wanted & s.key_set) for s in passage.sentences]
        sources = [s for s, n in zip(passage.sentences, shared, strict=True) if n and n >= MIN_CLOSE * max(shared)]
    return [u for u in passage.units if any(s.encloses(u) for s in sources)]


def _known(said: Unit, answer: Reading, passage: Reading) -> Unit:
    """The unit with its dates as the passage writes them, and its names as the passage knows them."""
    terms: list[Term] = []
    for term in said.terms:
        if term.kind == "date" and term.key not in passage.key_set:
            term = term._replace(key=next(iter(passage.dates_like(answer.dates[term.key])), term.key))
        terms.append(term._replace(kind="name") if term.key in passage.names else term)
    return Unit(tuple(terms))


def _misplaced(said: Unit, bearers: Sequence[Unit], sources: Sources, narrow: bool) -> Charge | Finding | None:
    """What a clause of the passage has in its place, unless another clause bears the answer out."""
    passage = sources.passage
    known = said.key_set & passage.content
    if len(known) < 2:
        return None
    charges = [c for unit in sources.accusers for c in _charges(said, known, unit, passage) if narrow or c.typed]
    holding = [u for u in bearers if _holds(u, said, known)]
    if holding:
        proven = (c for c in charges if c.invented or (c.framed and sources.contradict(c, known, holding)))
        return next(proven, None) or _turned_in_all(said, holding, passage)
    charged = {c.unit for c in charges}
    for charge in charges:
        witnesses = (w for w in passage.clauses if w != charge.unit and not sources.names_only(charge.unit, [w]))
        if not any(_clears(w, charge, known, w in charged) for w in witnesses):
            return charge
    holding = [] if charges else [u for u in passage.sentences if _holds(u, said, known)]
    return _turned_in_all(said, holding, passage) if holding else None


def _holds(unit: Unit, said: Unit, known: frozenset[str]) -> bool:
    """Whether the unit has all that is said, as often: a Chinese character may stand in two words."""
    if not known <= unit.key_set:
        return False
    return len(said.keys) == len(said.key_set) or not Counter(k for k in said.keys if k in known) - Counter(unit.keys)


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
    if charged or not witness.key_set <= known:
        return False
    return len(witness.key_set - own) >= MIN_WITNESS * len(accused)


def _charges(said: Unit, known: frozenset[str], unit: Unit, passage: Reading) -> Iterator[Charge]:
    """Something of the answer's clause that takes the place of something like it in the passage's."""
    shared = known & unit.key_set
    if not shared:
        return
    weight = sum(1 if key.isascii() else 0.5 for key in shared)
    own_runs, other_runs = _differences(said, unit)
    for own in own_runs:
        rest = len(known - set(own.keys) | shared)
        full = len(shared) == rest
        covered = len(shared) >= max(MIN_SHARED * rest, len(own.keys) / 2)
        for other in other_runs:
            rest_of_unit = len(unit.key_set) - len(other.keys)
            restated = len(shared) >= max(2, MIN_RESTATED * rest_of_unit)
            # A clause restated to the last word is enough, however short.
            wholly = len(shared) == rest_of_unit and (full or own.terms[0].kind in ("number", "date"))
            if not (covered or restated or wholly):
                continue
            if _rivals(own, other, full, MIN_SHARED_WORDS if wholly else weight, passage):
                yield Charge(unit, own, other)
            elif weight > 1 and _invented(own, other, full, weight, passage):
                yield Charge(unit, own, other, invented=True)


def _differences(said: Unit, unit: Unit) -> tuple[list[Run], list[Run]]:
    """What either side has and the other hasn't, in short stretches."""
    own = [t.key in unit.key_set for t in said.terms]
    other = [t.key in said.key_set for t in unit.terms]
    if not all(key.isascii() for key in said.key_set) and len(said.key_set) < _content_size(said):
        own, other = [False] * len(own), [False] * len(other)
        matcher = SequenceMatcher(None, said.keys, unit.keys, autojunk=False)
        for here, there, size in matcher.get_matching_blocks():
            own[here : here + size] = other[there : there + size] = [True] * size
    return list(_runs(said.terms, own)), list(_runs(unit.terms, other))


def _content_size(unit: Unit) -> int:
    return sum(t.kind not in ("role", "not") for t in unit.terms)


def _runs(terms: Sequence[Term], shared: Sequence[bool]) -> Iterator[Run]:
    """The stretches that aren't shared, cut at roles, before each number or date and behind each date."""
    start, before = 0, None
    for place in range(len(terms) + 1):
        at_end = place == len(terms)
        passed = at_end or shared[place] or terms[place].kind in ("role", "not")
        if not passed and not _cuts(terms, start, place):
            continue
        if start < place and place - start <= MAX_RUN:
            yield Run(tuple(terms[start:place]), before, _next_shared(terms, shared, place))
        start = place + 1 if passed else place
        if not at_end and terms[place].key in _LISTING:
            before = None
        elif not at_end and shared[place] and terms[place].kind not in ("role", "not"):
            before = terms[place].key


def _next_shared(terms: Sequence[Term], shared: Sequence[bool], place: int) -> str | None:
    for term, is_shared in zip(terms[place:], shared[place:], strict=True):
        if term.key in _LISTING:
            return None
        if is_shared and term.kind not in ("role", "not"):
            return term.key
    return None


def _cuts(terms: Sequence[Term], start: int, place: int) -> bool:
    return place > start and (terms[place].kind in ("number", "date") or terms[place - 1].kind == "date")


def _rivals(own: Run, other: Run, full: bool, shared: float, passage: Reading) -> bool:
    """Whether the two can stand for each other without meaning the same. ``full``: all else is the same."""
    before = own.before is not None and own.before == other.before
    after = own.after is not None and own.after == other.after
    if {own.terms[0].kind, other.terms[0].kind} & {"number", "date"}:
        return own.keys[0] in passage.content and _rival_figures(own, other, before, after, full, shared, passage)
    if not all(key in passage.content for key in own.keys):
        return False
    if "name" in own.kinds or "name" in other.kinds:
        typed = own.kinds == other.kinds == {"name"}
        return "name" in own.kinds & other.kinds and (full or shared > 1) and (before or after or typed)
    if _person(own) and _person(other) and (before or after) and shared >= 1:
        return True
    if shared < MIN_SHARED_WORDS or (not own.text.isascii() and not any(passage.neighbours(own.keys))):
        return False
    if (_person(own) and _person(other)) or ((before or after) and _opposite(own, other)):
        return True
    return _same_place(own, other) and _rival_words(own, other, full, shared, passage)


def _rival_figures(
    own: Run, other: Run, before: bool, after: bool, full: bool, shared: float, passage: Reading
) -> bool:
    if own.terms[0].kind != other.terms[0].kind or max(len(own.keys), len(other.keys)) > MAX_NUMBER_RUN:
        return False
    if own.terms[0].kind == "date":
        return (shared > 1 and (before or after)) or (full and shared > MIN_SHARED_WORDS)
    bare = len(own.keys) == len(other.keys) == 1
    if own.text.isascii() and not bare and own.keys[1:] != other.keys[1:] and _counts_alone(own, passage):
        return False
    return shared >= MIN_SHARED_WORDS and (before or (after and bare))


def _counts_alone(run: Run, passage: Reading) -> bool:
    """Whether the word behind the run's number counts nothing else in the passage: then the two belong together."""
    return len(run.keys) > 1 and {n for n, word in passage.counted if word == run.keys[1]} == {run.keys[0]}


def _rival_words(own: Run, other: Run, full: bool, shared: float, passage: Reading) -> bool:
    """For words that nothing marks as names, in copies of a clause or where the passage sets one against the other."""
    interior, sizes = None not in (own.before, own.after), sorted((len(own.keys), len(other.keys)))
    if own.text.isascii():
        paired = interior or (full and sizes[0] == sizes[1] > 1)
        return _parallel(own, other, passage) or (paired and sizes[1] <= MAX_WORDS and _contrasted(own, other, passage))
    if interior and full and shared >= 2 * MIN_SHARED_WORDS:
        return True
    alike = sizes[0] == sizes[1] or (full and sizes[0] > 1 and 2 * sizes[1] <= 3 * sizes[0])
    return alike and (interior or _parallel(own, other, passage) or _contrasted(own, other, passage))


def _opposite(own: Run, other: Run) -> bool:
    return len(own.keys) == len(other.keys) == 1 and frozenset((own.keys[0], other.keys[0])) in _OPPOSITES


def _invented(own: Run, other: Run, full: bool, shared: float, passage: Reading) -> bool:
    """Whether a Chinese name that the passage hasn't stands in a name's place: nothing marks names in Chinese."""
    if own.text.isascii() or any(passage.neighbours(own.keys)) or len(other.keys) < 2:
        return False
    if _person(own) and _person(other):
        return own.before == other.before or own.after == other.after
    strange = sum(key not in passage.content for key in own.keys)
    if own.kinds != {"word"} or not 2 <= len(own.keys) <= 4 or strange * 2 < len(own.keys):
        return False
    if not full or not _same_place(own, other):
        return False
    interior = None not in (own.before, own.after)
    copied = interior and len(own.keys) == len(other.keys) == strange and shared >= 2 * MIN_SHARED_WORDS
    return len(own.keys) > 3 or own.before in _PLACED or copied


def _same_place(own: Run, other: Run) -> bool:
    """Between the same words, or at the same end of the clause."""
    return own.before == other.before and own.after == other.after and (own.before, own.after) != (None, None)


def _person(run: Run) -> bool:
    """Whether the run is like a Chinese name of two or three characters, a title before it or not: 知县何文渊."""
    size = min(len(run.keys), 3)
    return len(run.keys) != 1 and run.keys[-size] in _SURNAMES


def _parallel(own: Run, other: Run, passage: Reading) -> bool:
    """Whether the passage uses both beside the same word, as it does with "red lamp" and "green lamp"."""
    mine, theirs = passage.neighbours(own.keys), passage.neighbours(other.keys)
    if own.before in mine[0] or own.after in mine[1]:
        return True
    shared = {key for a, b in zip(mine, theirs, strict=True) for key in a & b if key[0].isalnum()}
    return bool(shared & passage.content)


def _contrasted(own: Run, other: Run, passage: Reading) -> bool:
    """Whether a sentence of the passage has both: then they are two things, and not two words for one."""
    return any(_has(s, own) and _has(s, other) for s in passage.sentences)


def _has(unit: Unit, run: Run) -> bool:
    if not frozenset(run.keys) <= unit.key_set:
        return False
    return run.text.isascii() or "".join(run.keys) in "".join(unit.keys)


def _turned_in_all(said: Unit, holding: Sequence[Unit], passage: Reading) -> Finding | None:
    turned = [_turned_round(said, unit, passage) for unit in holding]
    return None if None in turned else turned[0]


def _turned_round(said: Unit, unit: Unit, passage: Reading) -> Finding | None:
    """Two of the passage's words that have changed places, with what is between them left where it was."""
    terms = [t for t in said.terms if t.key in unit.key_set]
    source = [t for t in unit.terms if t.kind not in ("role", "not")]
    blocks = list(_blocks([t.key for t in terms], [t.key for t in source]))
    moved = [n for n, (block, right) in enumerate(zip(blocks, sorted(blocks), strict=True)) if block != right]
    if len(moved) != 2 or _VOICES & set(said.keys) != _VOICES & set(unit.keys):
        return None
    first, last = (Run(tuple(terms[blocks[n][1] : blocks[n][2]])) for n in moved)
    named = first.kinds == last.kinds == {"name"}
    if first.text.isascii() and (len(first.keys) > MAX_NUMBER_RUN or (len(first.keys) != len(last.keys) and not named)):
        return None
    between = terms[blocks[moved[0]][2] : blocks[moved[1]][1]]
    joined = _roles(said, first.terms[-1], last.terms[0]) & _roles(unit, source[blocks[moved[1]][0]], source[-1])
    copied = len(terms) >= MIN_COPIED * len(source)
    if (not between and joined) or (between and (copied or _interchangeable(first, last, passage))):
        return Finding("swapped", f"{first.text!r} and {last.text!r} have changed places")
    return None


def _roles(unit: Unit, start: Term, end: Term) -> set[str]:
    """The roles between two terms of the unit, but for "is"."""
    return {t.key for t in unit.terms if t.kind == "role" and start.end <= t.start < end.start} - {"be"}


def _interchangeable(first: Run, last: Run, passage: Reading) -> bool:
    if first.kinds == last.kinds and first.kinds <= {"name", "number", "date"}:
        return True
    if _person(first) and _person(last):
        return True
    if len(first.keys) != len(last.keys):
        return False
    return _parallel(first, last, passage)


def _blocks(said: Sequence[str], source: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Stretches of ``said`` that stand unbroken in ``source``: ``(place there, start, end here)``."""
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
