"""Finds dates in a text, however they are written: 4 March 2024, March 4, 2024-03-04, 2024年3月4日, 三月四日, May 1912.

So that an answer may write a date its own way, and may not mix one date's day with another one's month.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from textmill_synth.numerals import numbers

_MONTH_LIST = "january february march april may june july august september october november december"
_MONTHS = {name[:3]: n for n, name in enumerate(_MONTH_LIST.split(), 1)}
_MONTH = rf"(?:{'|'.join(_MONTH_LIST.split())}|(?:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\b\.?)"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_HAN_NUMBER = "[〇零一二三四五六七八九十]"
_DATE = re.compile(
    rf"(?P<y1>\d{{4}})[-/.](?P<m1>\d{{1,2}})[-/.](?P<d1>\d{{1,2}})(?!\d)"
    rf"|(?:(?P<more>{_DAY}(?:, ?{_DAY})*)(?:\s+(?:and|or|to)\s+|[-–]))?\b(?P<d2>{_DAY})\s+(?:of\s+)?(?P<m2>{_MONTH})"
    rf"(?:,?\s+(?P<y2>\d{{4}}))?\b"
    rf"|\b(?P<m3>{_MONTH})\s+(?P<d3>{_DAY})(?!\d)(?:,?\s+(?P<y3>\d{{4}}))?\b"
    rf"|\b(?P<m4>{_MONTH}),?\s+(?P<y4>\d{{4}})\b"
    rf"|(?:(?P<y5>\d{{4}}|{_HAN_NUMBER}{{4}})年)?(?P<m5>\d{{1,2}}|{_HAN_NUMBER}{{1,3}})月(?!份?[租费底初])"
    rf"(?:(?P<d5>\d{{1,2}}|{_HAN_NUMBER}{{1,3}})[日号])?",
    re.IGNORECASE,
)
_MONTH_STARTS = tuple(_MONTHS)
_MONTH_WORD = re.compile(rf"\b{_MONTH}", re.IGNORECASE)
_DIGITS_JOINED = re.compile(r"\d{4}[-/.]\d")


class Date(NamedTuple):
    """A date as far as the text gives it; None for what it leaves out."""

    year: int | None
    month: int | None
    day: int | None

    def agrees(self, other: "Date") -> bool:
        """Whether nothing that both give differs, and the other gives each part from the month down."""
        if any(mine is not None and mine != theirs for mine, theirs in zip(self[1:], other[1:], strict=True)):
            return False
        return self.year is None or other.year is None or self.year == other.year


@lru_cache(maxsize=512)
def date_spans(text: str) -> tuple[tuple[int, int, Date], ...]:
    """Every date that names a month, with its place. "13 and 14 November" is two."""
    return tuple(_dates(text)) if _may_have(text) else ()


def _may_have(text: str) -> bool:
    """Most texts name no month, and this look takes a hundredth of the next."""
    if "月" in text or _DIGITS_JOINED.search(text):
        return True
    lower = text.lower()
    return any(month in lower for month in _MONTH_STARTS) and _MONTH_WORD.search(text) is not None


def _dates(text: str) -> Iterator[tuple[int, int, Date]]:
    for found in _DATE.finditer(text):
        date = _date(found)
        if date.month is not None and not 1 <= date.month <= 12:
            continue
        yield found.start(), found.end(), date
        for day in re.findall(r"\d+", found["more"] or ""):
            yield found.start(), found.end(), date._replace(day=int(day))


def _date(found: "re.Match[str]") -> Date:
    """The parts of whichever form matched."""
    form = next(n for n in "12345" if found[f"m{n}"])
    month = found[f"m{form}"]
    day = found[f"d{form}"] if form != "4" else None
    return Date(_number(found[f"y{form}"]), _MONTHS.get(month[:3].lower()) or _number(month), _number(day))


def _number(text: str | None) -> int | None:
    values = numbers(re.sub(r"(?<=\d)(?:st|nd|rd|th)", "", text)) if text else set()
    return int(values.pop()) if values else None
