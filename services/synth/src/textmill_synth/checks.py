"""Says why an answer must not be trained on. Each check is a pure function: a finding, or None when all is well.

These are the checks of form; ``grounding`` holds those that compare an answer with its passage. A check never mends
what it finds. Knows nothing of LLMs, jobs or stores.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from textmill.contracts.documents import Language
from textmill_synth.sentences import ends_complete

Reason = Literal[
    "empty",
    "truncated",
    "format",
    "language",
    "refusal",
    "prompt_leak",
    "echo",
    "repetition",
    "too_long",
    "ungrounded_number",
    "ungrounded_name",
    "ungrounded_words",
    "negation",
    "key_missing",
    "key_not_in_passage",
    "no_subject",
    "conflict",
    "duplicate",
]


@dataclass(frozen=True)
class Finding:
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Candidate:
    """An answer and all that it is judged against. ``instructions`` is the fixed text of the prompt template."""

    answer: str
    question: str
    passage: str
    language: Language
    finish_reason: str = "stop"
    key: str | None = None
    instructions: str = ""
    max_characters: int = 400


Check = Callable[[Candidate], Finding | None]

_LABEL = re.compile(
    r"(?:^|[\s\"“{*#])(content|summary|interpretation|image|explanation|note|passage|question|answer|title|text"
    r"|内容|摘要|总结|解释|解读|图像|象征意义|问题|答案|回答|注)[\"*]*\s*[:：]",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"```|<\|[^|]*\|>|</?(?:s|think|answer|system|user|assistant)>|^\s*[{\[]", re.IGNORECASE)
_QUOTES = (("“", "”"), ("「", "」"), ("『", "』"), ("（", "）"), ("(", ")"), ("《", "》"))
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_FOREIGN_SCRIPT = re.compile(r"[\u0400-\u04ff\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\uac00-\ud7af]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_ENGLISH_GLUE_LIST = "the a an is are was were be of to in and or that it its for with on as by from this has"
_ENGLISH_GLUE = frozenset(_ENGLISH_GLUE_LIST.split())
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial|language model)|\bI(?:'m| am) (?:sorry|unable|not able)|\bI apologi[sz]e"
    r"|\bI (?:cannot|can't|can not|do not have|don't have|won't)\b|\b(?:cannot|can't|unable to) (?:answer|help|provide)"
    r"|\b(?:does|do|did|is|are)(?: not|n't) (?:mention|specif|state|say|provide|given|enough|contain|include)"
    r"|\bno (?:information|mention)\b|\bnot (?:mentioned|specified|stated|provided|given)\b"
    r"|抱歉|对不起|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|我(?:无法|不能|没有办法)|无法(?:回答|提供|确定)"
    r"|(?:没有|未)(?:提到|提及|提供|说明|给出)",
    re.IGNORECASE,
)
# An answer that speaks of "the passage" is useless to a reader who will not see one.
_POINTS_AT_PROMPT = re.compile(
    r"\b(?:the|this|given|above|following) (?:passage|paragraph|excerpt|context|prompt)\b|\bin one sentence\b"
    r"|\baccording to the text\b"
    r"|\b(?:to|this|the) (?:this )?question (?:is|asks)\b|\bthe (?:answer|fact) (?:is|lies)\b"
    r"|(?:这段|本段|上述|该段|以上)(?:文字|话|段落|内容|材料)"
    r"|(?:文中|上文|原文|本文|材料)(?:中|提到|指出|说|所)"
    r"|用一句话|(?:答案|回答)是",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+(?:['’][^\W_]+)?")
_LOOP = re.compile(r"(\S.{0,40}?)(?:[\s,，、;；]*\1){3,}", re.DOTALL)
_LONG_BLANK = re.compile(r"\s{8,}|\n{4,}")
_LEAK_TOKENS = {"en": 5, "zh": 4}


def empty(candidate: Candidate) -> Finding | None:
    if _TOKEN.search(candidate.answer):
        return None
    return Finding("empty", f"the answer has no word in it: {candidate.answer[:20]!r}")


def truncated(candidate: Candidate) -> Finding | None:
    """A sentence that was cut off. An answer that hit the token limit passes when its own sentence is whole."""
    if ends_complete(candidate.answer):
        return None
    if candidate.finish_reason == "length":
        return Finding("truncated", "the token limit was reached before the first sentence ended")
    return Finding("truncated", f"no sentence end, the answer stops at {candidate.answer[-20:]!r}")


def format_slip(candidate: Candidate) -> Finding | None:
    """Labels and markup that belong to a return format, and quotes that don't close."""
    label = _LABEL.search(candidate.answer)
    if label and label.group().strip() not in candidate.passage:
        return Finding("format", f"a label of a return format stands in the answer: {label.group().strip()!r}")
    markup = _MARKUP.search(candidate.answer)
    if markup:
        return Finding("format", f"markup stands in the answer: {markup.group().strip()!r}")
    if candidate.answer.count('"') % 2:
        return Finding("format", 'a double quote (") is not closed')
    for opening, closing in _QUOTES:
        if candidate.answer.count(opening) != candidate.answer.count(closing):
            return Finding("format", f"{opening}{closing} do not pair")
    return None


def wrong_language(candidate: Candidate) -> Finding | None:
    """Another script or tongue than the passage's. Foreign words that the passage itself uses are allowed."""
    answer, source = candidate.answer, candidate.passage + candidate.question
    foreign = [c for c in _FOREIGN_SCRIPT.findall(answer) if c not in source]
    if candidate.language == "en":
        foreign += [c for c in _HAN.findall(answer) if c not in source]
        words = [w.lower() for w in _TOKEN.findall(answer)]
        if not foreign and len(words) >= 6 and not _ENGLISH_GLUE & set(words):
            return Finding("language", "six words and more, none of them a common English one")
    else:
        known = source.lower()
        foreign += [w for w in _LATIN_WORD.findall(answer) if w.lower() not in known]
        if not foreign and not _HAN.search(answer) and _HAN.search(source):
            return Finding("language", "no Chinese character in an answer to a Chinese passage")
    return Finding("language", f"not in {candidate.language}: {foreign[:3]}") if foreign else None


def refusal(candidate: Candidate) -> Finding | None:
    found = _REFUSAL.search(candidate.answer)
    if found is None or found.group().lower() in candidate.passage.lower():
        return None
    return Finding("refusal", f"the answer declines: {found.group()!r}")


def prompt_leak(candidate: Candidate) -> Finding | None:
    """Words of the prompt's own instructions, or talk of a passage that the reader won't see."""
    pointer = _POINTS_AT_PROMPT.search(candidate.answer)
    if pointer and pointer.group().lower() not in candidate.passage.lower():
        return Finding("prompt_leak", f"the answer speaks of its prompt: {pointer.group()!r}")
    length = _LEAK_TOKENS[candidate.language]
    own = _shingles(candidate.passage, length) | _shingles(candidate.question, length)
    leaked = (_shingles(candidate.answer, length) & _shingles(candidate.instructions, length)) - own
    return Finding("prompt_leak", f"instructions in the answer: {' '.join(min(leaked))!r}") if leaked else None


def echo(candidate: Candidate) -> Finding | None:
    """The question given back, or a question in place of an answer."""
    answer, question = _tokens(candidate.answer), _tokens(candidate.question)
    if candidate.answer.rstrip(" \"'”’」").endswith(("?", "？")):
        return Finding("echo", "the answer is itself a question")
    if len(question) >= 3 and answer[: len(question)] == question:
        return Finding("echo", "the answer starts with the whole question")
    return None


def repetition(candidate: Candidate) -> Finding | None:
    loop = _LOOP.search(candidate.answer)
    if loop and len(loop.group()) >= 8:
        return Finding("repetition", f"four times and more in a row: {loop.group(1)!r}")
    if _LONG_BLANK.search(candidate.answer):
        return Finding("repetition", "a loop of white space")
    tokens = _tokens(candidate.answer)
    repeated = [t for t in _runs(tokens, 4) if t > 1]
    if len(tokens) >= 16 and sum(repeated) > len(tokens) / 3:
        return Finding("repetition", f"of {len(tokens)} words a third and more repeat the same four")
    return None


def too_long(candidate: Candidate) -> Finding | None:
    size, limit = len(candidate.answer), candidate.max_characters
    return Finding("too_long", f"{size} characters, at most {limit} are allowed") if size > limit else None


FORM_CHECKS: tuple[Check, ...] = (
    empty,
    repetition,
    format_slip,
    refusal,
    prompt_leak,
    echo,
    wrong_language,
    truncated,
    too_long,
)


def first_finding(candidate: Candidate, checks: tuple[Check, ...]) -> Finding | None:
    """The first thing wrong with the answer, in the order of the checks."""
    return next((finding for finding in (check(candidate) for check in checks) if finding), None)


def _tokens(text: str) -> list[str]:
    return [t.casefold() for t in _TOKEN.findall(text)]


def _shingles(text: str, length: int) -> set[tuple[str, ...]]:
    tokens = _tokens(text)
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def _runs(tokens: list[str], length: int) -> list[int]:
    """How often each sequence of ``length`` tokens occurs."""
    counts: dict[tuple[str, ...], int] = {}
    for i in range(len(tokens) - length + 1):
        run = tuple(tokens[i : i + length])
        counts[run] = counts.get(run, 0) + 1
    return list(counts.values())
