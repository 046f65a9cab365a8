"""Finds sentences in Chinese and English text, as spans, so that every quotation can be traced to its place.

Knows nothing of passages, records or languages' names: the full stop decides.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

_CLOSING = "\"'”’」』）)\\]》"
_CHINESE_END = rf"[。！？…]+[{_CLOSING}]*"
_WESTERN_END = rf"[.!?]+[{_CLOSING}]*(?=\s|$|[\u4e00-\u9fff])"
_BLOCK_END = r"\n[ \t]*\n|(?<=\n)(?=[#*\-] )"
_HEADING = r"(?m:^#{1,6} [^\n]*(?:\n|$))"
_BOUNDARY = re.compile(f"{_HEADING}|{_CHINESE_END}|{_WESTERN_END}|{_BLOCK_END}")
_COMPLETE = re.compile(rf"(?:[。！？…]|[.!?])[{_CLOSING}]*\s*$")
# A full stop behind these does not end a sentence: "Fig. 3", "e.g. this", "J. Legge", "1. item".
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nos|Fig|vs|cf|ca|al|e\.g|i\.e)|(?<![°\d])(?<!\d )\b[A-Z]|^\d{1,3})\.$"
)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Half-open spans of all sentences, without the white space around them. Markdown headings stand alone."""
    return list(_spans(text))


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """The span of the sentences that hold ``text[start:end]``: one, or all that the range touches."""
    touched = [span for span in sentence_spans(text) if span[1] > start and span[0] < end]
    return (touched[0][0], touched[-1][1]) if touched else (start, end)


def first_sentence(text: str) -> str:
    """What stands before the first sentence end, the end included; all of it when there is none."""
    spans = sentence_spans(text)
    return text[spans[0][0] : spans[0][1]] if spans else ""


def ends_complete(text: str) -> bool:
    """Whether the text closes with a sentence end, as an answer that wasn't cut off does."""
    return _COMPLETE.search(text) is not None


@lru_cache(maxsize=512)
def _spans(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(span for span in (_strip(text, start, end) for start, end in _pieces(text)) if span[0] < span[1])


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _BOUNDARY.finditer(text):
        if _ABBREVIATION.search(text[start : match.end()].lstrip()):
            continue
        yield start, match.end()
        start = match.end()
    yield start, len(text)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
