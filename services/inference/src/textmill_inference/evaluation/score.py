"""Is every key fact in the answer? Pure code, no model judges here.

Texts are compared as tokens, so that a fact matches only as whole words and whole numbers: "line 2" is neither in
"line 21" nor in "line 2.5". Languages without spaces are compared character by character. Knows nothing of negation,
synonyms or units: an answer that quotes a fact in order to deny it counts as correct.
"""

import re
import unicodedata
from collections.abc import Sequence

_UNSPACED = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(
    rf"""
    [{_UNSPACED}]                                             # Han and kana: each character by itself
    | (?<![^\W_])-?\d+(?:\.\d+)*(?![^\W_{_UNSPACED}])         # numbers, with sign and decimals
    | (?:(?![{_UNSPACED}])[^\W_])+(?:(?<=\d)\.\d+)*           # words, also with digits: B12, v1.2
    | [%‰]
    """,
    re.VERBOSE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def is_correct(answer: str, key_facts: Sequence[str]) -> bool:
    """True iff there are key facts and each of them is in the answer."""
    said = tokens(answer)
    return bool(key_facts) and all(_contains(said, tokens(fact)) for fact in key_facts)


def tokens(text: str) -> list[str]:
    """Normalized tokens: NFKC (so full width is half width), case folded, without punctuation and spaces.

    Symbols like ䷆ or € are tokens, since a fact can consist of one.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).replace("\u2212", "-")
    folded = _THOUSANDS.sub("", folded)
    found: list[str] = []
    position = 0
    while position < len(folded):
        match = _TOKEN.match(folded, position)
        if match:
            found.append(match.group())
            position = match.end()
            continue
        if unicodedata.category(folded[position]) in ("So", "Sc"):
            found.append(folded[position])
        position += 1
    return found


def _contains(haystack: Sequence[str], needle: Sequence[str]) -> bool:
    if not needle:
        return False
    width = len(needle)
    return any(haystack[i : i + width] == needle for i in range(len(haystack) - width + 1))
