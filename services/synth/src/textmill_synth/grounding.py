"""Says whether an answer's facts stand in its passage: numbers, dates, names, words, the key fact.

Strict where a small change turns a fact into its opposite (numbers, names, the key), by coverage for ordinary words,
since a good answer may put things its own way. The question counts as source too: its slots come from the passage.
What the facts have to do with each other is for ``roles`` and ``negation``.
"""

import re
from functools import lru_cache
from itertools import pairwise

from textmill_synth.checks import FORM_CHECKS, Candidate, Check, Finding
from textmill_synth.dates import date_spans
from textmill_synth.negation import negation_changed
from textmill_synth.numerals import HAN_NUMERALS, NUMBER_WORDS, numbers
from textmill_synth.reading import read
from textmill_synth.roles import swapped
from textmill_synth.sentences import sentence_spans
from textmill_synth.terms import HAN_GLUE, STOP_WORDS, stem

MAX_UNGROUNDED = {"en": 0.34, "zh": 0.25}
"""The share of content words (en) or characters (zh) that may be the answer's own."""
_LATIN = r"[^\W\d_\u2e80-\ud7af]"
_WORD = re.compile(rf"{_LATIN}+(?:[-’']{_LATIN}+)*")
_CAPITALISED = re.compile(rf"(?<![^\W\u2e80-\ud7af])[A-Z]{_LATIN}*(?:[-’']{_LATIN}+)*")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_TITLE = re.compile(r"《([^》]+)》")
_QUOTED = re.compile(r"“([^”]+)”|「([^」]+)」|(?<!\w)\"([^\"]+)\"")
_OUTER_MARKS = "。，.,；;：:！!？? "
_LISTED = re.compile(r"(?:^|(?<=[\s,;，；]))[(（]?(\d{1,2})[.)）、](?=\s|\D)")
_UNIT_LIST = """gram grams litre litres liter liters metre metres meter meters kilogram kilograms kilometre kilometres
percent pounds euros"""
_MEANINGLESS = STOP_WORDS | frozenset(_UNIT_LIST.split())
# Words of the prompts' examples that anybody may use.
_COMMON_LIST = "write writing make use count break cover clear cold name full short text"
_COMMON = frozenset(stem(w) for w in _COMMON_LIST.split())


def ungrounded_number(candidate: Candidate) -> Finding | None:
    """A number that the source hasn't. The parts of a date are no numbers of their own, but for its year."""
    extra = _numbers(_without_list_marks(candidate.answer)) - _numbers(candidate.passage) - _numbers(candidate.question)
    return Finding("ungrounded_number", f"not in the passage: {sorted(extra)}") if extra else None


def ungrounded_date(candidate: Candidate) -> Finding | None:
    """A day or month that no date of the source has, though its numbers may stand there."""
    said = [date for _, _, date in date_spans(candidate.answer)]
    if not said:
        return None
    source = [*read(candidate.passage).dates.values(), *read(candidate.question).dates.values()]
    wrong = [date for date in said if not any(date.agrees(known) for known in source)]
    return Finding("ungrounded_date", f"not in the passage: {wrong[0]}") if wrong else None


def ungrounded_name(candidate: Candidate) -> Finding | None:
    """Capitalised words inside a sentence must be the passage's own."""
    known = _source_words(candidate.passage) | _source_words(candidate.question)
    starts = {start for start, _ in sentence_spans(candidate.answer)}
    names = [
        m.group()
        for m in _CAPITALISED.finditer(candidate.answer)
        if m.start() not in starts and candidate.answer[: m.start()].strip("\"'“‘ *(") and m.group() != "I"
    ]
    unknown = [name for name in names if not set(_words(_fold(name))) <= known]
    return Finding("ungrounded_name", f"not in the passage: {unknown[:3]}") if unknown else None


def ungrounded_quotation(candidate: Candidate) -> Finding | None:
    """What stands in quotation marks is quoted word for word."""
    return _not_in_source(_QUOTED, candidate)


def ungrounded_title(candidate: Candidate) -> Finding | None:
    """《Titles》 stand in the passage."""
    return _not_in_source(_TITLE, candidate)


def _not_in_source(quotation: re.Pattern[str], candidate: Candidate) -> Finding | None:
    quoted = ["".join(groups) for groups in quotation.findall(candidate.answer)]
    if not quoted:
        return None
    source = f"{_folded(candidate.passage)} {_folded(candidate.question)}"
    unknown = [name for name in quoted if _fold(name).strip(_OUTER_MARKS) not in source]
    return Finding("ungrounded_name", f"quoted, and not in the passage: {unknown[:3]}") if unknown else None


def ungrounded_words(candidate: Candidate) -> Finding | None:
    if candidate.language == "zh":
        return _ungrounded_characters(candidate)
    known = _source_stems(candidate.passage) | _source_stems(candidate.question)
    words = content_words(candidate.answer)
    unknown = [w for w in words if stem(w) not in known]
    most = len(unknown) > 1 and 2 * len(unknown) > len(words)
    if most or len(unknown) > max(2, MAX_UNGROUNDED["en"] * len(words)):
        return Finding(
            "ungrounded_words", f"{len(unknown)} of {len(words)} words are not in the passage: {unknown[:5]}"
        )
    return None


def leaked_example(candidate: Candidate) -> Finding | None:
    """A word of the prompt's own examples or instructions that neither the passage nor the question has."""
    if candidate.language == "zh" or not candidate.instructions:
        return None
    own = _content_stems(candidate.instructions)
    leaked = [w for w in content_words(candidate.answer) if stem(w) in own]
    if not leaked:
        return None
    source = _source_stems(candidate.passage) | _source_stems(candidate.question) | _COMMON
    leaked = [w for w in leaked if stem(w) not in source]
    return Finding("prompt_leak", f"words of the prompt, and not of the passage: {leaked[:3]}") if leaked else None


def key_missing(candidate: Candidate) -> Finding | None:
    if candidate.key is None or contains(candidate.answer, candidate.key):
        return None
    return Finding("key_missing", f"the key fact {candidate.key!r} is not in the answer")


GROUNDING_CHECKS: tuple[Check, ...] = (
    ungrounded_number,
    ungrounded_date,
    ungrounded_title,
    negation_changed,
    ungrounded_name,
    swapped,
    ungrounded_quotation,
    ungrounded_words,
    leaked_example,
    key_missing,
)
ALL_CHECKS: tuple[Check, ...] = FORM_CHECKS + GROUNDING_CHECKS


def contains(text: str, key: str) -> bool:
    """Whether the key stands in the text, whatever the case and spacing; "2" doesn't stand in "12"."""
    haystack, needle = _fold(text), _fold(key)
    at = haystack.find(needle)
    while at >= 0 and not _stands_alone(haystack, at, at + len(needle)):
        at = haystack.find(needle, at + 1)
    return at >= 0


def closest_sentence(answer: str, passage: str) -> tuple[int, int]:
    """The span of the passage's sentence that shares most with the answer; the first of equals."""
    wanted = _features(answer)
    return max(_sentence_features(passage), key=lambda sentence: len(wanted & sentence[1]))[0]


def content_words(text: str) -> list[str]:
    """Lower-case words that carry meaning: of three letters and more, no stop words, no numbers, no "don't"."""
    words = [w for w in _words(_fold(text)) if len(w) > 2 and w not in _MEANINGLESS and not w.endswith("n't")]
    return [w for w in words if NUMBER_WORDS.isdisjoint(w.split("-"))]


def _ungrounded_characters(candidate: Candidate) -> Finding | None:
    characters = {c for c in _HAN.findall(candidate.answer) if c not in HAN_GLUE and c not in HAN_NUMERALS}
    unknown = [c for c in characters if c not in candidate.passage and c not in candidate.question]
    if len(unknown) > max(2, MAX_UNGROUNDED["zh"] * len(characters)) or len(unknown) == len(characters) > 1:
        detail = f"{len(unknown)} of {len(characters)} characters are not in the passage: {''.join(unknown[:8])}"
        return Finding("ungrounded_words", detail)
    return None


def _without_list_marks(answer: str) -> str:
    """The answer without its "1.", "2." where they count up from one."""
    marks = [int(m) for m in _LISTED.findall(answer)] if "1" in answer else []
    return _LISTED.sub(" ", answer) if len(marks) > 1 and marks == list(range(1, len(marks) + 1)) else answer


@lru_cache(maxsize=512)
def _numbers(text: str) -> frozenset[str]:
    """The numbers outside dates, and the dates' years."""
    years, rest = set(), text
    for start, end, date in reversed(list(date_spans(text))):
        rest = f"{rest[:start]} {rest[end:]}"
        years |= {str(date.year)} if date.year else set()
    return frozenset(numbers(rest) | years)


@lru_cache(maxsize=512)
def _folded(text: str) -> str:
    return _fold(text)


@lru_cache(maxsize=512)
def _source_words(text: str) -> frozenset[str]:
    return frozenset(_words(_fold(text)))


@lru_cache(maxsize=512)
def _source_stems(text: str) -> frozenset[str]:
    return frozenset(stem(w) for w in _source_words(text))


@lru_cache(maxsize=16)
def _content_stems(instructions: str) -> frozenset[str]:
    return frozenset(stem(w) for w in content_words(instructions))


@lru_cache(maxsize=512)
def _sentence_features(passage: str) -> tuple[tuple[tuple[int, int], frozenset[str]], ...]:
    spans = sentence_spans(passage) or [(0, len(passage))]
    return tuple((span, frozenset(_features(passage[slice(*span)]))) for span in spans)


def _features(text: str) -> set[str]:
    han = _HAN.findall(text)
    return {stem(w) for w in content_words(text)} | {a + b for a, b in pairwise(han)} | numbers(text)


def _stands_alone(folded: str, start: int, end: int) -> bool:
    """Whether neither end of ``folded[start:end]`` cuts a Latin word or a number in two."""
    cut_left = start > 0 and _is_latin(folded[start - 1]) and _is_latin(folded[start])
    return not cut_left and not (end < len(folded) and _is_latin(folded[end - 1]) and _is_latin(folded[end]))


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _fold(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


def _words(folded: str) -> list[str]:
    words = [w.removesuffix("'s") for w in _WORD.findall(folded)]
    return words + [part for w in words if "-" in w for part in w.split("-")]
