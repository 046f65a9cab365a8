"""Finds personal data in text: Chinese mobile numbers, resident identity numbers, bank cards, e-mail addresses.

Numbers with check digits count only when these are right. Knows nothing of records.
"""

import re
import unicodedata
from collections.abc import Iterator
from datetime import date

from textmill.contracts.quality import PiiKind

_EMAIL = re.compile(
    r"(?<![a-z0-9.+-])[a-z0-9][a-z0-9_.+-]{0,63}@(?:[a-z0-9][a-z0-9-]{0,62}\.)+[a-z]{2,24}(?![a-z0-9-])", re.IGNORECASE
)
_DIGITS = re.compile(r"(?<![\dA-Za-z.])\+?\d(?:[ -]?\d){10,24}[Xx]?(?![\dA-Za-z]|\.\d)")
_MOBILE = re.compile(r"(?:(?:\+|00)?86)?1[3-9]\d{9}")
_RESIDENT = re.compile(r"[1-8]\d{5}((?:18|19|20)\d\d)(\d\d)(\d\d)\d{3}[\dXx]")
_CARD = re.compile(r"[2-69]\d{12,18}")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"


def pii_kinds(text: str) -> tuple[PiiKind, ...]:
    """Which kinds of personal data stand in the text, each once, in the order of their names."""
    return tuple(sorted(set(_kinds(unicodedata.normalize("NFKC", text)))))


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


def _kinds(text: str) -> Iterator[PiiKind]:
    if "@" in text and _EMAIL.search(text):
        yield "email"
    for found in _DIGITS.finditer(text):
        number = found.group().replace(" ", "").replace("-", "")
        if _MOBILE.fullmatch(number):
            yield "mobile"
        elif is_resident_id(number):
            yield "resident_id"
        elif is_bank_card(number):
            yield "bank_card"


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False
