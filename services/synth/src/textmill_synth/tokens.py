"""Takes a text apart into words and Chinese characters, as the checks of form compare them."""

import re
from functools import lru_cache

TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+(?:['’][^\W_]+)?")


@lru_cache(maxsize=512)
def tokens(text: str) -> tuple[str, ...]:
    return tuple(TOKEN.findall(text.casefold()))


@lru_cache(maxsize=512)
def shingles(text: str, length: int) -> frozenset[tuple[str, ...]]:
    """All runs of ``length`` tokens."""
    return frozenset(counted_runs(text, length))


def counted_runs(text: str, length: int) -> dict[tuple[str, ...], int]:
    """How often each run of ``length`` tokens occurs."""
    own, counts = tokens(text), dict[tuple[str, ...], int]()
    for i in range(len(own) - length + 1):
        run = own[i : i + length]
        counts[run] = counts.get(run, 0) + 1
    return counts


@lru_cache(maxsize=512)
def lower(text: str) -> str:
    return text.lower()
