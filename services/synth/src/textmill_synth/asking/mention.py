"""Finds where a question names its subject, and puts a pronoun there. Rules of form alone, no parser.

A subject that is named twice, or in pieces, isn't found: half a replacement would make a wrong question.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from textmill.contracts.documents import Language

_HAN_NUMERAL = "〇零一二三四五六七八九十百千万亿两"
HAN_KIND = "卦章节条号款项页课回篇册卷部段"
"""What is counted with 第: the character belongs to the subject's name."""
_OPENING, _CLOSING = "（(“「『《", "）)”」』》"
_GAP = {
    "en": re.compile(r"(?:, | \(|, \(| )(?:(?!(?:and|or|with|than|from|to|of|in|on|at|for|by|is|are) )[A-Za-z]+ )?"),
    "zh": re.compile(f"[{HAN_KIND}]?[，、{_OPENING} ]?第?"),
}
_LEFT_OF_NUMBER = re.compile(
    r"(?:\b(?:the|this) )?\b(?!(?:the|this|of|in|on|at|for|by|to|is|are|does|do|In|On|At|For) )[A-Za-z]+ $"
)
_LEFT_OF_NAME = re.compile(r"\b(?:the|this) [a-z]+ $")
_NEEDS_COMMA = re.compile(r" (?:the|a|an|if|when|from|starting|counted|please)\b")
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_ASKS = frozenset(("what", "which", "who", "whom", "whose", "where", "when", "why", "how"))


@dataclass(frozen=True)
class Mention:
    """Where the question names its subject: ``question[start:end]``."""

    start: int
    end: int


def find_mention(question: str, subject: Sequence[str], language: Language) -> Mention | None:
    """The one place where the subject is named, with its article, kind and brackets; None without one."""
    return _found(question, tuple(subject), language)


@lru_cache(maxsize=4096)
def _found(question: str, subject: tuple[str, ...], language: Language) -> Mention | None:
    spans = list(_outermost(sorted(_occurrences(question, subject, language))))
    if not spans:
        return None
    for (_, end), (start, _) in pairwise(spans):
        if _GAP[language].fullmatch(question, end, start) is None:
            return None
    mention = Mention(spans[0][0], spans[-1][1])
    return _widened_zh(question, mention) if language == "zh" else _widened_en(question, mention, len(spans))


def with_pronoun(question: str, mention: Mention, language: Language) -> str | None:
    """The question as it is asked when the subject has just been spoken of; None where that makes no sentence."""
    before, after = question[: mention.start], question[mention.end :]
    if language == "zh":
        if after.startswith((" ", "，", "、", "：", "里", "中", "之")) or before.endswith(("排", "在", "第")):
            return None
        return f"那它{after}" if not before else f"{before}它{after}"
    if not before or after.startswith(":"):
        return None
    if _NEEDS_COMMA.match(after) and question[mention.end - 1] == ",":
        after = f",{after}"
    asked = f"{before}its{after[2:]}" if after.startswith("'s") else f"{before}it{after}"
    first = _FIRST_WORD.match(asked)
    if first and first.group().lower() in _ASKS:
        return f"And {asked[0].lower()}{asked[1:]}"
    return asked


def protected_spans(question: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """Wherever one of the names stands, whatever the case."""
    return [m.span() for name in names if name for m in re.finditer(re.escape(name), question, re.IGNORECASE)]


def _occurrences(question: str, subject: Sequence[str], language: Language) -> Iterator[tuple[int, int]]:
    for value in filter(None, subject):
        pattern = re.escape(value)
        if language == "zh" and set(value) <= set(_HAN_NUMERAL):
            pattern = f"(?<![{_HAN_NUMERAL}]){pattern}(?![{_HAN_NUMERAL}])"
        elif value[0].isascii() and value[-1].isascii():
            pattern = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
        yield from (match.span() for match in re.finditer(pattern, question))


def _outermost(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    return (
        span
        for span in dict.fromkeys(spans)
        if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans)
    )


def _widened_en(question: str, mention: Mention, parts: int) -> Mention:
    start, end = mention.start, mention.end
    pattern = _LEFT_OF_NUMBER if question[start].isdigit() else _LEFT_OF_NAME
    left = pattern.search(question[:start])
    start = left.start() if left else start
    named = question[start:end]
    closing = ")" if named.count("(") > named.count(")") else "," if parts > 1 and ", " in named else None
    return Mention(start, end + (question[end : end + 1] == closing))


def _widened_zh(question: str, mention: Mention) -> Mention:
    start, end = mention.start, mention.end
    if start and question[start - 1] in "第" + _OPENING:
        start -= 1
    if question[end : end + 1] in tuple(HAN_KIND):
        end += 1
    named = question[start:end]
    if sum(named.count(c) for c in _OPENING) > sum(named.count(c) for c in _CLOSING):
        end += question[end : end + 1] in tuple(_CLOSING)
    return Mention(start, end)
