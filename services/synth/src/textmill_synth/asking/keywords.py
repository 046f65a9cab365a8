"""Cuts a question down to its keywords, as people type into a search box. Needs no word segmenter.

A question about nothing but its subject has no keywords: "hexagram 7" could ask for anything.
"""

import re
from collections.abc import Sequence

from textmill.contracts.documents import Language
from textmill_synth.asking.mention import HAN_KIND, Mention
from textmill_synth.asking.near import numbers_in
from textmill_synth.grounding import content_words
from textmill_synth.numerals import numbers

_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_ASKING_WORD_LIST = """
tell name give explain describe please know say list show find let want need get put take ask asked question answer
could would should does did first many much words someone something anything look looking read reading short
"""
_ASKING_WORDS = frozenset(_ASKING_WORD_LIST.split())
_SMALL_WORDS = frozenset(("a", "an", "the", "of", "and", "in", "on", "for", "to"))
_GLUE_WORDS = re.compile(
    "为什么|什么|哪几|哪些|哪个|哪种|哪里|哪儿|哪|怎么样|怎样|怎么|如何|多少|几个|几|请问|请|说出|说说|讲讲|写出|列出|描述|解释一下"
    "|解释|介绍|告诉|一下|分别|各是|应该|可以|能否|是否|还是|如果|之中|有人问|人们|我|你|您|他|它|是|又|里|的|吗|呢|吧|啊"
)
_GLUE_CHARACTER = re.compile("[有在由把被和与及了从也都就用该能会要]")
_NEGATED = re.compile(r"\b(?:not|no|never|none|nor)\b|n['’]t\b|没有|不是", re.IGNORECASE)
_ASIDE = re.compile(r"(?:if|when|suppose)\b|.*[.?!。？！]\s*\w", re.IGNORECASE | re.DOTALL)
_PUNCTUATION = re.compile(r"[^\w]+|_+")


def keywords(
    question: str, subject: Sequence[str], mention: Mention | None, passage: str, language: Language
) -> list[str]:
    """The keywords in the order of the question, and with the subject first where that differs. May be empty.

    Of several sentences, or of one with a "not", a handful of words would say something else.
    """
    if _NEGATED.search(question) or _ASIDE.match(question):
        return []
    if language == "zh":
        parts, named = _chinese(question, mention, passage)
    else:
        parts, named = _english(question, subject, mention)
    others = [part for part in parts if part not in named]
    if not others or numbers_in(question) - numbers(" ".join(parts)):
        return []
    return list(dict.fromkeys((" ".join(parts), " ".join([*named, *others]))))


def _english(question: str, subject: Sequence[str], mention: Mention | None) -> tuple[list[str], list[str]]:
    """Words that carry meaning, numbers and names; names keep their capitals."""
    known = {word for value in subject for word in _WORD.findall(value.casefold())} - _SMALL_WORDS
    parts: list[str] = []
    named: list[str] = []
    for match in _WORD.finditer(question):
        word, folded = match.group(), match.group().casefold()
        in_name = mention is not None and mention.start <= match.start() < mention.end
        carries = folded not in _ASKING_WORDS and bool(content_words(word) or numbers(word))
        if not carries and folded not in known:
            continue
        kept = word if folded in known or (word[0].isupper() and match.start() > 0) else folded
        parts.append(kept)
        if in_name or folded in known:
            named.append(kept)
    return list(dict.fromkeys(parts)), list(dict.fromkeys(named))


def _chinese(question: str, mention: Mention | None, passage: str) -> tuple[list[str], list[str]]:
    """The subject whole, and the pieces that are left when question words and particles are taken out."""
    if mention is None:
        return _pieces(question, passage), []
    before, named = question[: mention.start], _PUNCTUATION.sub("", question[mention.start : mention.end])
    parts = [*_pieces(before, passage), named, *_pieces(question[mention.end :], passage)]
    return list(dict.fromkeys(parts)), [named]


def _pieces(text: str, passage: str) -> list[str]:
    cut = _GLUE_WORDS.sub(" ", text)
    cut = _GLUE_CHARACTER.sub(lambda found: _cut_or_kept(found, passage), cut)
    return [piece for piece in _PUNCTUATION.split(cut) if len(piece) > 1 and piece[0] not in HAN_KIND]


def _cut_or_kept(found: re.Match[str], passage: str) -> str:
    """A blank for a particle; the character itself where it is part of a word that the passage uses, as 会 in 会议."""
    text, at = found.string, found.start()
    neighbours = (text[at - 1 : at + 1] if at else "", text[at : at + 2])
    return found.group() if any(len(n.strip()) == 2 and n in passage for n in neighbours) else " "
