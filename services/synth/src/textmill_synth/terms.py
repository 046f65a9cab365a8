"""Takes a text apart into terms: a word's stem, a Chinese character, a number's value or a date.

So that "Seven lines" and "7 line" are alike. Knows nothing of clauses and sentences; those are ``reading``'s.
"""

import re
from functools import lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple

from textmill_synth.dates import date_spans
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
_BE_LIST = "am is are was were be been being"
_PLACE_LIST = "above after before below down in into off out over under up until upon"
_TITLE_LIST = "mr mrs ms dr shall ones"
_ROLE_LIST = "to from by with as instead than against"
_NOT_LIST = "not never no none nobody nothing neither nor without cannot unable"
_BE = frozenset(_BE_LIST.split())
_ROLES = frozenset(_ROLE_LIST.split()) | frozenset(_PLACE_LIST.split())
_NOT_WORDS = frozenset(_NOT_LIST.split())
_GLUE = STOP_WORDS - _ROLES | frozenset(_TITLE_LIST.split())
HAN_GLUE = frozenset(
    "的了是在和与及也而其为有这那个等就都很以于之者所被把从到对由中上下一不没们我你他她它着过地得即指表示代称叫做作"
    "时会共已还则因后前来去能可应该须需让使并且但或若如果每各吗呢么什约只"
)
_HAN_GLUE = frozenset(
    "的了在也而其为有这那个等就都很以于之者所们我你他她它着得即指表示称叫做作则乃并且还应可会要将请须需宜时"
)
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
_SUFFIXES = ("ing", "edly", "ed", "ies", "es", "ly", "s")


_START = attrgetter("start")


class Term(NamedTuple):
    key: str
    kind: Kind
    start: int
    end: int


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """A crude stem: enough to see "leading" in "leads" and "armies" in "army"."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            word = word[:-1] if suffix in ("ing", "ed") and word[-1] == word[-2] and word[-1] in "bdgmnprt" else word
            break
    return word.rstrip("eiy")[:8] or word


def terms_of(text: str) -> list[Term]:
    """All terms in order: a date is one, and so is a number, whatever words they are written in."""
    found = _figures(text)
    taken = {place for term in found for place in range(term.start, term.end)}
    starts, names = {start for start, _ in sentence_spans(text)}, _capitalised(text)
    for match in _TERM.finditer(text):
        start, end = match.span()
        if start not in taken:
            word = match.group()
            key, kind = _classified(word, match.lastgroup or "", start in starts, word in names)
            found.append(Term(key, kind, start, end))
    found.sort(key=_START)
    return found


def _figures(text: str) -> list[Term]:
    """The dates and the numbers outside dates and names like E12."""
    found = [Term(f"@{date}", "date", start, end) for start, end, date in date_spans(text)]
    numbers = number_spans(text)
    if numbers:
        taken = {place for term in found for place in range(term.start, term.end)}
        taken.update(place for match in _CODE.finditer(text) for place in range(*match.span()))
        found += [Term(f"#{value}", "number", start, end) for start, end, value in numbers if start not in taken]
    return found


def _capitalised(text: str) -> set[str]:
    """The words that have a capital where no sentence starts, or before another one, and nowhere a small letter."""
    starts = {start for start, _ in sentence_spans(text)}
    capitals = {m[1] for m in _CAPITALISED.finditer(text) if m[2] or m.start() not in starts}
    small = set(_LOWER_CASE.findall(text)) if capitals else capitals
    return {word for word in capitals if word.lower() not in small}


@lru_cache(maxsize=8192)
def _classified(text: str, group: str, opens: bool, capital: bool) -> tuple[str, Kind]:
    """The key and the kind of a term. ``opens``: it starts a sentence; ``capital``: the text has it as a name."""
    if group == "mark":
        return text, "mark"
    if group == "code":
        return text.lower(), "name"
    if group in ("neg", "other"):
        return text, "not" if group == "neg" else "word"
    if group == "han":
        return text, "role" if text in _HAN_ROLES else "glue" if text in _HAN_GLUE else "word"
    return _classified_word(text, opens, capital)


def _classified_word(text: str, opens: bool, capital: bool) -> tuple[str, Kind]:
    word = text.replace("’", "'").lower()
    if word in _NOT_WORDS or word.endswith("n't"):
        return word, "not"
    word = word.removesuffix("'s").rstrip("'")
    if word in _BE or word in _ROLES:
        return "be" if word in _BE else word, "role"
    # "A" inside a sentence is a label, as in "circuit A".
    if len(word) == 1 and text.isupper() and text != "I" and (text != "A" or not opens):
        return word, "name"
    if word in _GLUE or len(word) == 1:
        return word, "glue"
    named = (capital and text[0].isupper()) or _INNER_CAPITAL.search(text) is not None
    return stem(word), "name" if named else "word"
