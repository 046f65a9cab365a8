"""Reads a text as the checks need it: terms in clauses in sentences. A passage is read once, however many answers it has.

A term is a word's stem, a Chinese character, a number's value or a date, so that "Seven lines" and "7 line" are alike.
What the terms mean to each other is for ``roles`` and ``negation``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from textmill_synth.dates import Date, date_spans
from textmill_synth.numerals import number_spans
from textmill_synth.sentences import sentence_spans

Kind = Literal["word", "name", "number", "date", "role", "not", "glue", "mark"]
"""``role`` says who does it to whom (to, by, 向, 被); ``glue`` says nothing; ``mark`` is punctuation."""

_STOP_WORD_LIST = """
a about above after again all also am an and any are as at be because been before being below between both but by
can could did do does doing down during each few for from further had has have having he her here hers him his how i
if in into is it its itself just like may me might more most must my no nor not now of off on once one only or other
our out over own same she should so some such than that the their them then there these they this those through to
too under until up upon very was we were what when where which while who whom whose why will with would you your
called represents represented representing symbolizes symbolises symbolized stands stand means mean refers consists
known describes described suggests located made composed consisting without within across versus
yes says said say tell tells told want wants wanted need needs needed make makes become becomes became happen happens
whether however although though since unless still even never nothing nobody already another around together
"""
STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_BE = frozenset("am is are was were be been being".split())
_PLACES = frozenset("above after before below down in into off out over under up until upon".split())
_GLUE = STOP_WORDS - _PLACES | frozenset("yes shall mr mrs ms dr also ones".split())
_ROLES = _PLACES | frozenset("to from by with as instead than against".split())
_NOT_WORDS = frozenset("not never no none nobody nothing neither nor without cannot unable".split())
HAN_GLUE = frozenset(
    "的了是在和与及也而其为有这那个等就都很以于之者所被把从到对由中上下一不没们我你他她它着过地得即指表示代称叫做作"
    "时会共已还则因后前来去能可应该须需让使并且但或若如果每各吗呢么什约只"
)
_HAN_GLUE = frozenset("的了在也而其为有这那个等就都很以于之者所们我你他她它着得即指表示称叫做作则乃并且还应可会要将请须需宜时")
_HAN_ROLES = frozenset("向给被由从把对让替和与及是")
_HAN_NOT = (
    r"不(?!可抗力|全|良|足|锈|明|等|幸|便|适(?!用)|仅|但|断|同|过[，,]|论|管|妨|久|禁|愧)"
    r"(?:得|可以?|能|要|宜|予|应该?|用|必|需要?|会|许|准|再|甚|太|是)?|(?<![吞淹沉埋出])没(?!收)有?"
    r"|无(?!论|穷|限|数|妄)[需须]?|未(?!来|济|必|满)[被曾能予]?|非(?!常|但)|勿|(?<!阿)莫(?!大|名|非)|毋"
    r"|否认|禁止|严禁|禁(?=用|忌)"
)
_CODE = re.compile(r"[A-Za-z]+-?\d[A-Za-z0-9-]*")
_TERM = re.compile(
    rf"(?P<code>{_CODE.pattern})|(?P<word>[^\W\d_\u2e80-\u9fff]+(?:[-'’][^\W\d_\u2e80-\u9fff]+)*)"
    rf"|(?P<neg>{_HAN_NOT})|(?P<other>其[他余它])|(?P<han>[\u3400-\u9fff])|(?P<mark>[^\w\s])"
)
_CAPITALISED = re.compile(r"\b([A-Z][^\W\d_]+)(?=(\s+[A-Z][a-z])?)")
_INNER_CAPITAL = re.compile(r"[a-z][A-Z]")
_LOWER_CASE = re.compile(r"\b[a-z]+")
_CLAUSE_MARKS = frozenset(",;，；、—–")
_CONJUNCTIONS = frozenset("and but while whereas yet".split())
_SUFFIXES = ("ing", "edly", "ed", "ies", "es", "ly", "s")


class Term(NamedTuple):
    key: str
    kind: Kind
    start: int
    end: int


@dataclass(frozen=True)
class Unit:
    """A clause or a sentence: its terms but for the marks and the glue, in order."""

    terms: tuple[Term, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(t.key for t in self.terms)

    @cached_property
    def key_set(self) -> frozenset[str]:
        """What is said, whoever does it to whom: without the roles."""
        return frozenset(t.key for t in self.terms if t.kind not in ("role", "not"))

    def encloses(self, other: "Unit") -> bool:
        return self.terms[0].start <= other.terms[0].start and other.terms[-1].end <= self.terms[-1].end


@dataclass(frozen=True)
class Reading:
    """``terms`` are all of the text's, marks and glue too. ``clauses`` are cut at "and" too, ``phrases`` aren't."""

    text: str
    terms: tuple[Term, ...]
    clauses: tuple[Unit, ...]
    phrases: tuple[Unit, ...]
    sentences: tuple[Unit, ...]
    numbers: frozenset[str]
    dates: dict[str, Date]

    @property
    def levels(self) -> tuple[tuple[Unit, ...], ...]:
        """The text in ever wider units."""
        return self.clauses, self.phrases, self.sentences

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        return tuple(dict.fromkeys(unit for level in self.levels for unit in level))

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(t.key for t in self.terms if t.kind == "name")

    @cached_property
    def key_set(self) -> frozenset[str]:
        return frozenset(t.key for t in self.terms)

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
        for place, term in enumerate(self.terms):
            places[term.key].append(place)
        return places

    def neighbours(self, run: Sequence[str]) -> tuple[set[str], set[str]]:
        """The keys that stand right before and right after the run, wherever it is in the text."""
        before, after = set(), set()
        for place in self.places.get(run[0], ()):
            end = place + len(run)
            if all(self.terms[place + i].key == key for i, key in enumerate(run) if place + i < len(self.terms)):
                before |= {self.terms[place - 1].key} if place else set()
                after |= {self.terms[end].key} if end < len(self.terms) else set()
        return before, after


@lru_cache(maxsize=512)
def read(text: str) -> Reading:
    """Read a text. Costs about a millisecond for 600 characters; remembered for the last 512 texts."""
    terms = tuple(_terms(text))
    sentences = list(_sentences(text, terms))
    return Reading(
        text=text,
        terms=terms,
        clauses=tuple(_units(sentences, _CONJUNCTIONS)),
        phrases=tuple(_units(sentences, frozenset())),
        sentences=tuple(_units(sentences, None)),
        numbers=frozenset(value for _, _, value in number_spans(text)),
        dates={f"@{date}": date for _, _, date in date_spans(text)},
    )


def stem(word: str) -> str:
    """A crude stem: enough to see "leading" in "leads" and "armies" in "army"."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            word = word[:-1] if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] in "bdgmnprt" else word
            break
    return word.rstrip("eiy")[:8] or word


def _terms(text: str) -> list[Term]:
    """All terms in order. Dates come before the numbers in them, numbers before their words."""
    found: list[Term] = [Term(f"@{date}", "date", start, end) for start, end, date in date_spans(text)]
    taken = {place for term in found for place in range(term.start, term.end)}
    coded = {place for match in _CODE.finditer(text) for place in range(*match.span())}
    for start, end, value in number_spans(text):
        if start not in taken and start not in coded:
            found.append(Term(f"#{value}", "number", start, end))
            taken.update(range(start, end))
    starts = {start for start, _ in sentence_spans(text)}
    capitals = {m[1].lower() for m in _CAPITALISED.finditer(text) if m[2] or m.start() not in starts}
    capitals -= set(_LOWER_CASE.findall(text))
    for match in _TERM.finditer(text):
        if match.start() not in taken:
            found += _term(match, capitals, match.start() in starts)
    return sorted(found, key=lambda term: term.start)


def _term(match: "re.Match[str]", capitals: set[str], opens: bool) -> Iterator[Term]:
    text, (start, end), group = match.group(), match.span(), match.lastgroup
    if group == "mark":
        yield Term(text, "mark", start, end)
    elif group == "code":
        yield Term(text.lower(), "name", start, end)
    elif group in ("neg", "other"):
        yield Term(text, "not" if group == "neg" else "word", start, end)
    elif group == "han":
        yield Term(text, "role" if text in _HAN_ROLES else "glue" if text in _HAN_GLUE else "word", start, end)
    else:
        yield _word(text, start, end, capitals, opens)


def _word(text: str, start: int, end: int, capitals: set[str], opens: bool) -> Term:
    word = text.replace("’", "'").lower()
    if word in _NOT_WORDS or word.endswith("n't"):
        return Term(word, "not", start, end)
    word = word.removesuffix("'s").rstrip("'")
    if word in _BE or word in _ROLES:
        return Term("be" if word in _BE else word, "role", start, end)
    # "A" inside a sentence is a label, as in "circuit A".
    if len(word) == 1 and text.isupper() and text != "I" and (text != "A" or not opens):
        return Term(word, "name", start, end)
    if word in _GLUE or len(word) == 1:
        return Term(word, "glue", start, end)
    named = (word in capitals and text[0].isupper()) or _INNER_CAPITAL.search(text) is not None
    return Term(stem(word), "name" if named else "word", start, end)


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
            content = tuple(t for t in terms[start:end] if t.kind not in ("glue", "mark"))
            if content:
                yield Unit(content)
            start = end


def _cuts(term: Term, conjunctions: frozenset[str]) -> bool:
    return (term.kind == "mark" and term.key in _CLAUSE_MARKS) or term.key in conjunctions
