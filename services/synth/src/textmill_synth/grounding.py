"""Says whether an answer's facts stand in its passage: numbers, names, words, negations, the key fact.

Strict where a small change turns a fact into its opposite (numbers, names, the key), by coverage for ordinary words,
since a good answer may put things its own way. The question counts as source too: its slots come from the passage.
"""

import re
from itertools import pairwise

from textmill_synth.checks import FORM_CHECKS, Candidate, Check, Finding
from textmill_synth.numerals import numbers
from textmill_synth.sentences import sentence_spans

MAX_UNGROUNDED = {"en": 0.34, "zh": 0.25}
"""The share of content words (en) or characters (zh) that may be the answer's own."""
_WORD = re.compile(r"[^\W\d_]+(?:[-’'][^\W\d_]+)*")
_CAPITALISED = re.compile(r"[A-Z][^\W\d_]*(?:[-’'][^\W\d_]+)*")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_QUOTED = re.compile(r"《([^》]+)》|“([^”]+)”|「([^」]+)」")
_STOP_WORD_LIST = """
a about above after again all also am an and any are as at be because been before being below between both but by
can could did do does doing down during each few for from further had has have having he her here hers him his how i
if in into is it its itself just like may me might more most must my no nor not now of off on once one only or other
our out over own same she should so some such than that the their them then there these they this those through to
too under until up upon very was we were what when where which while who whom whose why will with would you your
called represents represented representing symbolizes symbolises symbolized stands stand means mean refers consists
known describes described suggests located made composed consisting
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_HAN_GLUE = frozenset(
    "的了是在和与及也而其为有这那个等就都很以于之者所被把从到对由中上下一不没们我你他她它着过地得即指表示代称叫做作"
)
_NOT_EN = re.compile(r"\b(?:not|never|no|none|neither|nor|without|cannot)\b|n['’]t\b", re.IGNORECASE)
_NOT_ZH = re.compile(
    r"不(?!仅|但|断|同|过|论|管|妨|久|禁|愧)|没有|没|无(?!论|穷|限|数|妄)|未(?!来|济|必)|非(?!常|但)|并非|勿|莫|毫无"
)
_NEGATED = re.compile(r"[A-Za-z'’]+(?:\s+\w+)?|[\u4e00-\u9fff]{1,3}|.")
"""A negation and what it negates: an English word more, or Chinese characters up to three."""
_SUFFIXES = ("ing", "edly", "ed", "ies", "es", "ly", "s")


def ungrounded_number(candidate: Candidate) -> Finding | None:
    extra = numbers(candidate.answer) - numbers(f"{candidate.passage}\n{candidate.question}")
    return Finding("ungrounded_number", f"not in the passage: {sorted(extra)}") if extra else None


def ungrounded_name(candidate: Candidate) -> Finding | None:
    """Capitalised words inside a sentence, and what stands in quotation marks, must be the passage's own."""
    source = _fold(f"{candidate.passage} {candidate.question}")
    known = set(_words(source))
    starts = {start for start, _ in sentence_spans(candidate.answer)}
    names = [
        m.group()
        for m in _CAPITALISED.finditer(candidate.answer)
        if m.start() not in starts and candidate.answer[: m.start()].strip("\"'“‘ *(") and m.group() != "I"
    ]
    unknown = [name for name in names if not set(_words(_fold(name))) <= known]
    quoted = ("".join(groups) for groups in _QUOTED.findall(candidate.answer))
    unknown += [name for name in quoted if _fold(name).strip("。，.,") not in source]
    return Finding("ungrounded_name", f"not in the passage: {unknown[:3]}") if unknown else None


def ungrounded_words(candidate: Candidate) -> Finding | None:
    answer, source = candidate.answer, f"{candidate.passage} {candidate.question}"
    if candidate.language == "zh":
        return _ungrounded_characters(answer, source)
    known = {_stem(w) for w in _words(_fold(source))}
    words = content_words(answer)
    unknown = [w for w in words if _stem(w) not in known]
    if len(unknown) > MAX_UNGROUNDED["en"] * len(words):
        return Finding(
            "ungrounded_words", f"{len(unknown)} of {len(words)} words are not in the passage: {unknown[:5]}"
        )
    return None


def added_negation(candidate: Candidate) -> Finding | None:
    """A "not" in the answer that neither its own words in the passage have, nor the sentence it comes from."""
    pattern = _NOT_ZH if candidate.language == "zh" else _NOT_EN
    start, end = closest_sentence(candidate.answer, candidate.passage)
    if pattern.search(candidate.passage[start:end]):
        return None
    source = _fold(candidate.passage)
    for found in pattern.finditer(candidate.answer):
        if _fold(_NEGATED.match(candidate.answer, found.start())[0]) not in source:  # type: ignore[index]
            return Finding("negation", f"{found.group()!r} is in the answer and not in the sentence it comes from")
    return None


def leaked_example(candidate: Candidate) -> Finding | None:
    """A word of the prompt's own examples or instructions that neither the passage nor the question has."""
    if candidate.language == "zh":
        return None
    source = {_stem(w) for w in _words(_fold(f"{candidate.passage} {candidate.question}"))}
    own = {_stem(w) for w in content_words(candidate.instructions)} - source
    leaked = [w for w in content_words(candidate.answer) if _stem(w) in own]
    return Finding("prompt_leak", f"words of the prompt, and not of the passage: {leaked[:3]}") if leaked else None


def key_missing(candidate: Candidate) -> Finding | None:
    if candidate.key is None or contains(candidate.answer, candidate.key):
        return None
    return Finding("key_missing", f"the key fact {candidate.key!r} is not in the answer")


GROUNDING_CHECKS: tuple[Check, ...] = (
    ungrounded_number,
    ungrounded_name,
    added_negation,
    ungrounded_words,
    leaked_example,
    key_missing,
)
ALL_CHECKS: tuple[Check, ...] = FORM_CHECKS + GROUNDING_CHECKS


def contains(text: str, key: str) -> bool:
    """Whether the key stands in the text, whatever the case and spacing; "2" doesn't stand in "12"."""
    needle = re.escape(_fold(key)).replace(r"\ ", r"\s+")
    left = r"(?<![a-z0-9])" if key[:1].isascii() and key[:1].isalnum() else ""
    right = r"(?![a-z0-9])" if key[-1:].isascii() and key[-1:].isalnum() else ""
    return re.search(f"{left}{needle}{right}", _fold(text)) is not None


def closest_sentence(answer: str, passage: str) -> tuple[int, int]:
    """The span of the passage's sentence that shares most with the answer; the first of equals."""
    wanted = _features(answer)
    spans = sentence_spans(passage) or [(0, len(passage))]
    return max(spans, key=lambda span: len(wanted & _features(passage[span[0] : span[1]])))


def content_words(text: str) -> list[str]:
    """Lower-case words that carry meaning: of three letters and more, and no stop words."""
    return [w for w in _words(_fold(text)) if len(w) > 2 and w not in _STOP_WORDS and not numbers(w)]


def _ungrounded_characters(answer: str, source: str) -> Finding | None:
    characters = [c for c in _HAN.findall(answer) if c not in _HAN_GLUE and not numbers(c)]
    unknown = [c for c in characters if c not in source]
    if len(unknown) > MAX_UNGROUNDED["zh"] * len(characters):
        detail = f"{len(unknown)} of {len(characters)} characters are not in the passage: {''.join(unknown[:8])}"
        return Finding("ungrounded_words", detail)
    return None


def _features(text: str) -> set[str]:
    han = _HAN.findall(text)
    return {_stem(w) for w in content_words(text)} | {a + b for a, b in pairwise(han)} | numbers(text)


def _fold(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


def _words(folded: str) -> list[str]:
    words = [w.removesuffix("'s") for w in _WORD.findall(folded)]
    return words + [part for w in words if "-" in w for part in w.split("-")]


def _stem(word: str) -> str:
    """A crude stem: enough to see "leading" in "leads" and "armies" in "army"."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            break
    return word.rstrip("eiy")[:8] or word
