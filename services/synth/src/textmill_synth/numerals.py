"""Reads the numbers in a text, however they are written: 7, seven, seventh, 第七, 七, 1,000, a hundred, 3 million, 8万.

So that an answer may say "the second line" of a passage that says "line 2", and may not say "the third line".
"""

import re
from collections.abc import Iterator
from functools import lru_cache

_UNIT_LIST = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_ORDINAL_LIST = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_TENS_LIST = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = _UNIT_LIST.split()
_ORDINALS = _ORDINAL_LIST.split()
_TENS = {w: 10 * n for n, w in enumerate(_TENS_LIST.split(), 2)}
_WORDS = {w: n for n, w in enumerate(_UNITS)} | {w: n for n, w in enumerate(_ORDINALS)} | _TENS
_WORDS |= {f"{w}th": n for n, w in enumerate(_UNITS) if n > 12} | {f"{w[:-1]}ieth": n for w, n in _TENS.items()}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
NUMBER_WORDS = _WORDS.keys() | _SCALES.keys()
_ANY_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
_ANY_SCALE = "|".join(_SCALES)

_HAN_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1_000, "万": 10_000, "亿": 100_000_000}
HAN_NUMERALS = frozenset("〇零二三四五六七八九十百千万亿两")
"""The characters that count by themselves, as a bare 一 doesn't."""
_HAN_ALL = "〇零一二三四五六七八九十百千万亿"

# 3.6 million, 8万, 1,000; not the 千 of 千帕 and 千克, which belongs to the unit.
_DIGITS = re.compile(rf"(\d+(?:,\d{{3}})*(?:\.\d+)?)(?:\s?(万|亿)|\s({_ANY_SCALE})\b)?", re.IGNORECASE)
# "one" is mostly a pronoun, and "first," opens a sentence more often than it counts.
_FIRST_FEW = "few|two|three|four|five|six|seven|eight|nine|ten|\\d"
_NOT_COUNTING = rf"one(?!-|\s+(?:{_ANY_SCALE}))\b|first,|first(?=\s+(?:{_FIRST_FEW}))\b|at\s+first\b|first\s+of\s+all\b"
_ENGLISH = re.compile(
    rf"\b(?:{_NOT_COUNTING}|(?<=\d )(?:{_ANY_SCALE})\b|((?:a\s+(?={_ANY_SCALE}))?(?:{_ANY_WORD}|{_ANY_SCALE})"
    rf"(?:(?:\s+and\s+|[\s-]+)(?:{_ANY_WORD}|{_ANY_SCALE}))*)\b)",
    re.IGNORECASE,
)
_ENGLISH_PART = re.compile(r"[a-z]+", re.IGNORECASE)
# 两 is a digit before a scale or a measure (两百, 两尊), and a weight behind a numeral (八百两).
# Words whose characters count nothing are stepped over. A bare 一 counts only behind 第 or before a measure word.
_CHINESE = re.compile(
    "十二指肠|统一|唯一|万一|十分(?!钟|之)|千万(?!元)|万物|万事|百姓|万历|(?<=[百千万亿])两|千(?=[帕克米瓦卡])|两侧|两者"
    f"|(?<![第{_HAN_ALL}两])一(?![{_HAN_ALL}个爻条卦名位年月日号岁次种章节页人份期级卷片粒滴支张片勺碗])"
    f"|((?:两|[{_HAN_ALL}])[{_HAN_ALL}]*(?:两(?=[百千万亿])[{_HAN_ALL}]*)*)"
)
_HALF = re.compile("半(?=[个片粒勺年天斤公])")


def numbers(text: str) -> set[str]:
    """Every number in the text, in decimal notation."""
    return {value for _, _, value in number_spans(text)}


@lru_cache(maxsize=512)
def number_spans(text: str) -> tuple[tuple[int, int, str], ...]:
    """Every number with its place, ``(start, end, decimal notation)``; in order for each way of writing."""
    return tuple(_spans(text))


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    yield from _digits(text)
    if not text.isascii():
        yield from _chinese(text)
    # Most texts have no number word, and this look is far quicker than the next.
    if not NUMBER_WORDS.isdisjoint(_ENGLISH_PART.findall(text.lower())):
        for found in _ENGLISH.finditer(text):
            if found[1]:
                yield from _english(found[1], found.start(1))


def _digits(text: str) -> Iterator[tuple[int, int, str]]:
    for found in _DIGITS.finditer(text):
        number, han, english = found.groups()
        number = number.replace(",", "")
        scale = _HAN_SCALES[han] if han else _SCALES[english.lower()] if english else 1
        yield found.start(), found.end(), _plain(number) if scale == 1 else f"{float(number) * scale:.12g}"


def _plain(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number.lstrip("0") or "0"


def _english(words: str, offset: int) -> Iterator[tuple[int, int, str]]:
    """One value, or several where words follow each other that make no one number ("six seven")."""
    total = section = 0
    start = end = -1
    for part in _ENGLISH_PART.finditer(words):
        word = part.group().lower()
        if word in ("and", "a"):
            continue
        value = _WORDS.get(word)
        if value is not None and section and not _extends(section, value, words[end : part.start()]):
            yield offset + start, offset + end, str(total + section)
            total = section = 0
            start = -1
        if value is not None:
            section += value
        elif word == "hundred":
            section = max(section, 1) * 100
        else:
            total, section = total + max(section, 1) * _SCALES[word], 0
        start, end = part.start() if start < 0 else start, part.end()
    yield offset + start, offset + end, str(total + section)


def _extends(section: int, value: int, joint: str) -> bool:
    """Whether "twenty" and "four", or "one hundred" and "fifty", are one number; "two and three" are two."""
    if "and" in joint:
        return section % 100 == 0
    return section % 100 == 0 or (section % 10 == 0 and section % 100 >= 20 and value < 10)


def _chinese(text: str) -> Iterator[tuple[int, int, str]]:
    yield from ((m.start(), m.end(), "0.5") for m in _HALF.finditer(text))
    for found in _CHINESE.finditer(text):
        # A 万 behind digits (8万) was counted with them.
        if found[1] and not (found[1] in "万亿百千" and text[: found.start()][-1:].isdigit()):
            yield found.start(), found.end(), _han_value(found[1])


def _han_value(numeral: str) -> str:
    """二十四 is 24, 一百零八 is 108, 一九八四 (digit by digit) is 1984, 十万 is 100000."""
    if not any(c in _HAN_SCALES for c in numeral):
        return "".join(str(_HAN_DIGITS[c]) for c in numeral).lstrip("0") or "0"
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
    return str(total + section + digit)
