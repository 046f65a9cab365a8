"""Finds personal data in text: Chinese mobile numbers, resident identity numbers, bank cards, e-mail addresses.

Numbers with check digits count only when these are right. Knows nothing of records or requests.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from textmill.contracts.quality import PiiKind

_EMAIL = re.compile(
    r"(?<![a-z0-9.+-])[a-z0-9][a-z0-9_.+-]{0,63}@(?:[a-z0-9][a-z0-9-]{0,62}\.)+[a-z]{2,24}(?![a-z0-9-])", re.IGNORECASE
)
_DIGITS = re.compile(r"(?<![\dA-Za-z.])\+?\d(?:[ -]?\d){10,}[Xx]?(?![\dA-Za-z]|\.\d)")
_SHORTEST, _LONGEST = 11, 19
"""Characters of a number without what sets its parts apart: a mobile number, the longest bank card."""
_GROUP = re.compile(r"[+\dXx]+")
_MOBILE = re.compile(r"(?:(?:\+|00)?86)?1[3-9]\d{9}")
_RESIDENT = re.compile(r"[1-8]\d{5}((?:18|19|20)\d\d)(\d\d)(\d\d)\d{3}[\dXx]")
_CARD = re.compile(r"[2-69]\d{12,18}")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"


@dataclass(frozen=True, slots=True)
class PiiSpan:
    """Personal data from ``start`` up to ``end`` of a text, in characters."""

    kind: PiiKind
    start: int
    end: int


def pii_kinds(text: str) -> tuple[PiiKind, ...]:
    """Which kinds of personal data stand in the text, each once, in the order of their names."""
    return tuple(sorted({span.kind for span in _spans(unicodedata.normalize("NFKC", text))}))


def pii_spans(text: str) -> list[PiiSpan]:
    """Where personal data stands, in order; spans don't overlap.

    Full-width and other forms of one character are read as the plain one. Characters that stand for several are not,
    so ``pii_kinds`` may see more.
    """
    found: list[PiiSpan] = []
    for span in sorted(_spans(_folded(text)), key=lambda span: (span.start, -span.end)):
        if not found or span.start >= found[-1].end:
            found.append(span)
    return found


def is_resident_id(number: str) -> bool:
    """Eighteen characters: region, a real day of birth, and the check character of ISO 7064 MOD 11-2 (GB 11643)."""
    found = _RESIDENT.fullmatch(number)
    if found is None or not _is_day(*map(int, found.groups())):
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number[:17], strict=True))
    return _CHECKS[total % 11] == number[17].upper()


def is_bank_card(number: str) -> bool:
    """13 to 19 digits with a bank's first digit (ISO/IEC 7812: 3 to 6, newer ranges in 2, in China 9) and Luhn's check.

    One in ten numbers that are no cards passes too.
    """
    if _CARD.fullmatch(number) is None:
        return False
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


def _spans(text: str) -> Iterator[PiiSpan]:
    if "@" in text:
        for found in _EMAIL.finditer(text):
            yield PiiSpan("email", *found.span())
    for found in _DIGITS.finditer(text):
        yield from _numbers(found.group(), found.start())


def _numbers(run: str, start: int) -> Iterator[PiiSpan]:
    """The numbers in a run of digits, whose groups blanks or hyphens set apart: a number may be several of them."""
    groups = [found.span() for found in _GROUP.finditer(run)]
    at = 0
    while at < len(groups):
        found = _longest_from(run, groups, at)
        if found is not None:
            kind, last = found
            yield PiiSpan(kind, start + groups[at][0], start + groups[last][1])
            at = last
        at += 1


def _longest_from(run: str, groups: Sequence[tuple[int, int]], at: int) -> tuple[PiiKind, int] | None:
    """The longest number that begins with group ``at``, and its last group."""
    fitting, length = [], 0
    for last in range(at, len(groups)):
        length += groups[last][1] - groups[last][0]
        if length > _LONGEST:
            break
        if length >= _SHORTEST:
            fitting.append(last)
    for last in reversed(fitting):
        kind = _kind(run[groups[at][0] : groups[last][1]])
        if kind is not None:
            return kind, last
    return None


def _kind(run: str) -> PiiKind | None:
    number = run.replace(" ", "").replace("-", "")
    if _MOBILE.fullmatch(number):
        return "mobile"
    if is_resident_id(number):
        return "resident_id"
    return "bank_card" if is_bank_card(number) else None


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False


_LAST_REMEMBERED = 0xFFFF
"""Some 6 MB, were all of them to occur."""


class _Folding(dict[int, int]):
    """For ``str.translate``: each character's plain form where that is one ASCII character, else itself."""

    def __missing__(self, code: int) -> int:
        plain = unicodedata.normalize("NFKC", chr(code)) if code >= 128 else ""
        folded = ord(plain) if len(plain) == 1 and plain.isascii() else code
        if code <= _LAST_REMEMBERED:
            self[code] = folded
        return folded


_FOLDING = _Folding()


def _folded(text: str) -> str:
    """As long as the text, character by character."""
    return text if text.isascii() else text.translate(_FOLDING)
