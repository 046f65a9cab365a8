"""Finds a quotation in the passage it is said to come from, and gives back the exact span there.

Word for word, but not byte for byte: LLMs change quotation marks, widths, spacing and case when they copy. What differs
in more than that isn't a quotation. Knows nothing of answers.
"""

import unicodedata
from functools import lru_cache

from textmill_synth.checks import Finding

_SAME_MARK = {
    # An LLM that writes JSON turns double quotes inside a string into single ones.
    **dict.fromkeys('"“”„«»「」『』〝〞＂‘’‚`´＇', "'"),
    **dict.fromkeys("‐‑‒–—―−－", "-"),
    **dict.fromkeys("。｡．", "."),
    **dict.fromkeys("、，､", ","),
    **dict.fromkeys("【〔［", "["),
    **dict.fromkeys("】〕］", "]"),
    **dict.fromkeys("〈《", "<"),
    **dict.fromkeys("〉》", ">"),
    "·": ".",
    "•": ".",
    "・": ".",
    "…": "...",
}
_INVISIBLE = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")
_OUTER_MARKS = " \t\n\"'.,;:!?-()[]<>"


def locate_evidence(quote: str, passage: str) -> tuple[int, int] | None:
    """The half-open span of the passage that the quote copies; the first of several. None when there is none.

    First as it stands, then with both sides folded: Unicode forms (NFKD), case, white space, quotation marks, dashes,
    Chinese and Western punctuation. Marks around the quote don't count, nor may it begin or end inside a Latin word.
    """
    exact = quote.strip()
    start = passage.find(exact) if any(c.isalnum() for c in exact) else -1
    if start >= 0 and _whole_words(passage, start, start + len(exact)):
        return start, start + len(exact)
    needle = _folded(quote)[0].strip(_OUTER_MARKS)
    if not any(c.isalnum() for c in needle):
        return None
    haystack, origins = _folded(passage)
    at = haystack.find(needle)
    while at >= 0 and not _whole_words(haystack, at, at + len(needle)):
        at = haystack.find(needle, at + 1)
    return (origins[at], origins[at + len(needle) - 1] + 1) if at >= 0 else None


def evidence_missing(quote: str) -> Finding:
    """The finding for a quotation that ``locate_evidence`` didn't find."""
    return Finding("evidence_not_in_passage", f"not a quotation from the passage: {quote[:80]!r}")


@lru_cache(maxsize=256)
def _folded(text: str) -> tuple[str, list[int]]:
    """The text in one form, and for each of its characters the place in ``text`` that it comes from.

    White space stays, as one blank, only between Latin letters or digits: Chinese lines wrap without one.
    """
    characters: list[str] = []
    origins: list[int] = []
    blank = False
    for origin, original in enumerate(text):
        if original.isspace() or original in _INVISIBLE:
            blank = blank or original.isspace()
            continue
        form = _SAME_MARK.get(original) or unicodedata.normalize("NFKD", original).casefold()
        if blank and characters and _latin(characters[-1]) and _latin(form[0]):
            characters.append(" ")
            origins.append(origin - 1)
        blank = False
        characters += form
        origins += [origin] * len(form)
    return "".join(characters), origins


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether neither end of ``text[start:end]`` cuts a Latin word or a number in two."""
    opens = start == 0 or not (_latin(text[start - 1]) and _latin(text[start]))
    return opens and (end == len(text) or not (_latin(text[end - 1]) and _latin(text[end])))


def _latin(character: str) -> bool:
    return character.isalnum() and character < "\u2e80"
