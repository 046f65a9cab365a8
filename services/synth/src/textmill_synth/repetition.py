"""Finds what an answer says again and again: loops of words or blanks, and sentences said twice."""

import re

from textmill_synth.tokens import counted_runs, tokens

_LOOP = re.compile(r"(\S.{0,40}?)(?:[\s,，、;；]*\1){3,}", re.DOTALL)
_LONG_BLANK = re.compile(r"\s{8,}|\n{4,}")
_PART = re.compile(r"[.!?;,。！？；，、\n]+")
_LEAST_TOKENS = 16


def said_again(answer: str, passage: str) -> str | None:
    """What the answer repeats, in words for a finding. What the passage itself says twice may be said twice."""
    loop = _LOOP.search(answer) if _may_loop(tokens(answer)) else None
    if loop and len(loop.group()) >= 8 and loop.group() not in passage:
        return f"four times and more in a row: {loop.group(1)!r}"
    if _LONG_BLANK.search(answer):
        return "a loop of white space"
    again = _part_said_twice(answer)
    if again and again != _part_said_twice(passage, again):
        return f"said more than once: {again!r}"
    return _same_runs(answer, passage)


def _may_loop(words: tuple[str, ...]) -> bool:
    """Whether something may stand there four times in a row; the search for it is slow."""
    return len(words) - len(set(words)) > 2 or any(len(word) > 7 and 2 * len(set(word)) <= len(word) for word in words)


def _part_said_twice(text: str, wanted: str | None = None) -> str | None:
    """A part of two words and more that stands there twice, or the wanted one of these."""
    parts = [part.strip() for part in _PART.split(text.casefold())]
    if len(parts) == len(set(parts)):
        return None
    twice = (p for p in parts if wanted in (None, p) and parts.count(p) > 1)
    return next((p for p in twice if len(tokens(p)) > 1), None)


def _same_runs(answer: str, passage: str) -> str | None:
    size = len(tokens(answer))
    if size < _LEAST_TOKENS:
        return None
    repeated = {run: count for run, count in counted_runs(answer, 4).items() if count > 1}
    if sum(repeated.values()) <= size / 3:
        return None
    own = counted_runs(passage, 4)
    if 2 * sum(own.get(run, 0) > 1 for run in repeated) > len(repeated):
        return None
    return f"of {size} words a third and more repeat the same four"
