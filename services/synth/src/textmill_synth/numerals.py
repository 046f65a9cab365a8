"""Reads the numbers in a text, however they are written: 7, seven, seventh, 第七, 七, 1,000, 3.5.

So that an answer may say "the second line" of a passage that says "line 2", and may not say "the third line".
"""

import re

_UNIT_LIST = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_ORDINAL_LIST = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS_LIST = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = _UNIT_LIST.split()
_ORDINALS = _ORDINAL_LIST.split()
_TENS = {w: 10 * n for n, w in enumerate(_TENS_LIST.split(), 2)}
_WORDS = {w: n for n, w in enumerate(_UNITS)} | {w: n for n, w in enumerate(_ORDINALS)} | _TENS
_WORDS |= {f"{w}th": n for n, w in enumerate(_UNITS) if n > 12} | {f"{w[:-1]}ieth": n for w, n in _TENS.items()}
_DIGITS = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_LATIN_WORD = re.compile(r"[a-z]+", re.IGNORECASE)
# "one" is mostly a pronoun, and "first," opens a sentence more often than it counts.
_NOT_COUNTING = re.compile(r"\b(?:one(?!-)|first,|at first\b|first of all\b)", re.IGNORECASE)

_HAN_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1_000, "万": 10_000, "亿": 100_000_000}
_HAN_NUMBER = re.compile("[〇零一二三四五六七八九十百千万亿两]+")
# Words whose characters count nothing. A bare 一 counts only behind 第 or before a measure word.
_HAN_IDIOMS = re.compile(
    "统一|唯一|万一|十分|千万|万物|万事|百姓"
    "|(?<![第〇零一二三四五六七八九十百千万亿两])一(?![〇零一二三四五六七八九十百千万亿个爻条卦名位年月日号岁次种章节页人份])"
)


def numbers(text: str) -> set[str]:
    """Every number in the text, in decimal notation."""
    return _digits(text) | _english(text) | _chinese(text)


def _digits(text: str) -> set[str]:
    found = (m.group().replace(",", "") for m in _DIGITS.finditer(text))
    return {(n.rstrip("0").rstrip(".") if "." in n else n.lstrip("0") or "0") for n in found}


def _english(text: str) -> set[str]:
    words = _LATIN_WORD.findall(_NOT_COUNTING.sub(" ", text).lower())
    found: set[str] = set()
    tens = 0
    for word in words:
        value = _WORDS.get(word)
        if value is None or value >= 20:
            found |= {str(tens)} if tens else set()
            tens = value or 0
            continue
        found.add(str(tens + value))
        tens = 0
    return found | ({str(tens)} if tens else set())


def _chinese(text: str) -> set[str]:
    return {str(_han_value(m.group())) for m in _HAN_NUMBER.finditer(_HAN_IDIOMS.sub(" ", text))}


def _han_value(numeral: str) -> int:
    """二十四 is 24, 一百零八 is 108, 一九八四 (digit by digit) is 1984, 十万 is 100000."""
    if not any(c in _HAN_SCALES for c in numeral):
        return int("".join(str(_HAN_DIGITS[c]) for c in numeral))
    total = section = digit = 0
    for char in numeral:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
        elif _HAN_SCALES[char] >= 10_000:
            total += max(section + digit, 1) * _HAN_SCALES[char]
            section = digit = 0
        else:
            section += max(digit, 1) * _HAN_SCALES[char]
            digit = 0
    return total + section + digit
