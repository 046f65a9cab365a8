"""Says why a new wording must not stand for a question: it loses a number or a name, or gives the answer away.

Knows nothing of how the wording was made.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from textmill.contracts.documents import Language
from textmill_synth.asking.near import numbers_in
from textmill_synth.grounding import contains, content_words
from textmill_synth.numerals import numbers
from textmill_synth.topics import DroppedWording, Phrasing

_NAME = re.compile(r"(?<=[\w,;:，；：] )[A-Z][^\W\d_]+|《[^》]+》|“[^”]+”")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")
GIVEN_AWAY = 0.5
"""A wording that has this share of the answer's own content words says the answer."""


def number_lost(phrasing: Phrasing, plain: str, exactly: bool = False) -> DroppedWording | None:
    """``exactly``: none may come in either. A polite phrase with a number is no harm, an LLM's own number is."""
    before, after = numbers_in(plain), numbers_in(phrasing.said)
    changed = before ^ after if exactly else before - after
    return _dropped(phrasing, "number_changed", f"{sorted(changed)}") if changed else None


def name_lost(phrasing: Phrasing, plain: str, subject: Sequence[str]) -> DroppedWording | None:
    """Names stand in the new wording as they stood in the plain one; the subject's numbers may be written otherwise."""
    names = {s for s in subject if s in plain and not numbers(s)} | set(_NAME.findall(plain))
    said = phrasing.said.casefold()
    lost = [name for name in sorted(names) if name.strip("《》“”").casefold() not in said]
    return _dropped(phrasing, "name_lost", f"{lost}") if lost else None


def answer_told(phrasing: Phrasing, plain: Sequence[str], keys: Sequence[str]) -> DroppedWording | None:
    """A key fact in the wording, or in what goes before it, that none of the plain wordings has."""
    told = [key for key in keys if contains(phrasing.said, key) and not any(contains(q, key) for q in plain)]
    return _dropped(phrasing, "leaks_answer", f"{told}") if told else None


def answer_retold(phrasing: Phrasing, plain: str, answer: str) -> DroppedWording | None:
    """For answers without a key: too much of what the answer has and the plain question hasn't."""
    own = content_units(answer) - content_units(plain)
    told = own & content_units(phrasing.said)
    if len(told) < 2 or len(told) < GIVEN_AWAY * len(own):
        return None
    return DroppedWording(phrasing, "leaks_answer", f"{sorted(told)[:5]}", len(told) / len(own), GIVEN_AWAY)


def wrong_script(phrasing: Phrasing, language: Language) -> DroppedWording | None:
    """More of the other language's script than of its own."""
    han = sum(map(len, _HAN.findall(phrasing.question)))
    latin = len(re.findall(r"[A-Za-z]{2,}", phrasing.question))
    wrong = han <= latin if language == "zh" else latin <= han
    return _dropped(phrasing, "wrong_language", f"not in {language}") if wrong else None


def content_units(text: str) -> set[str]:
    """What a text is about: English content words, pairs of Chinese characters, numbers."""
    pairs = {a + b for run in _HAN.findall(text) for a, b in pairwise(run)}
    return set(content_words(_HAN.sub(" ", text))) | pairs | numbers(text)


def _dropped(phrasing: Phrasing, reason: str, detail: str) -> DroppedWording:
    return DroppedWording(phrasing, reason, detail)
