"""Says why an answer must not be trained on. Each check is a pure function: a finding, or None when all is well.

These are the checks of form; ``grounding`` holds those that compare an answer with its passage. A check never mends
what it finds. Knows nothing of LLMs, jobs or stores.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from textmill.contracts.documents import Language
from textmill_synth.repetition import said_again
from textmill_synth.sentences import ends_complete
from textmill_synth.tokens import TOKEN, lower, shingles, tokens
from textmill_synth.tongues import foreign_words

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
    "ungrounded_date",
    "ungrounded_name",
    "ungrounded_words",
    "negation",
    "key_missing",
    "key_not_in_passage",
    "evidence_not_in_passage",
    "swapped",
    "no_subject",
    "conflict",
    "duplicate",
    "missing",
    "tool_call",
    "judge_unsupported",
    "judge_unclear",
]


@dataclass(frozen=True)
class Finding:
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Candidate:
    """An answer and all that it is judged against. ``instructions`` is the fixed text of the prompt template.

    ``evidence`` is the span of the passage that the answer names as its source, where it names one.
    """

    answer: str
    question: str
    passage: str
    language: Language
    finish_reason: str = "stop"
    key: str | None = None
    instructions: str = ""
    max_characters: int = 400
    evidence: tuple[int, int] | None = None


Check = Callable[[Candidate], Finding | None]

_LABEL = re.compile(
    r"(?:^|[\s\"“{*#。！？；，.!?;,【（(\[])"
    r"(content|summary|interpretation|image|explanation|note|passage|question|answer|title|text"
    r"|内容|摘要|总结|小结|解释|解读|解析|图像|象征意义|问题|答案|回答|标题|原文|文字|注释|备注|注)[\"*】\]]*\s*[:：]"
    r"|【(?:内容|摘要|总结|解释|解读|解析|问题|答案|回答|标题|注释?)】",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"```|<\|[^|]*\|>|</?(?:s|think|answer|system|user|assistant)>|^\s*[{\[]", re.IGNORECASE)
_QUOTES = (("“", "”"), ("「", "」"), ("『", "』"), ("（", "）"), ("(", ")"), ("《", "》"))
_NOTHING = re.compile(r"\W*(?:n/?a|null|nil|undefined|nan|tbd|暂无)\W*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial|language model)|\bI(?:'m| am) (?:sorry|unable|not able)|\bI apologi[sz]e"
    r"|\bI (?:cannot|can't|can not|do not have|don't have|won't)\b|\b(?:cannot|can't|unable to) (?:answer|help|provide)"
    r"|\b(?:does|do|did)(?: not|n't) (?:mention|specif|state|say|provide|(?:contain|include|give) (?:any|enough|the))"
    r"|\b(?:is|are)(?: not|n't) (?:mention|specif|state|provide|given|enough)"
    r"|\b(?:have|there is|there's|without) (?:not )?(?:no|enough) (?:information|context|details)"
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
# What an English text that matches has in it; looking for these is far quicker.
_REFUSES_WITH = ("not", "n't", "unable", "sorry", "apolog", "as a", "no ", "enough ")
_POINTS_WITH = (
    "passage",
    "paragraph",
    "excerpt",
    "context",
    "prompt",
    "sentence",
    "text",
    "question",
    "answer",
    "fact",
)
_LEAK_TOKENS = {"en": 5, "zh": 4}


def empty(candidate: Candidate) -> Finding | None:
    if TOKEN.search(candidate.answer) and not _NOTHING.fullmatch(candidate.answer):
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
    label = _LABEL.search(candidate.answer) if any(mark in candidate.answer for mark in ":：【") else None
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
    foreign = foreign_words(candidate.answer, candidate.passage, candidate.question, candidate.language)
    return Finding("language", f"not in {candidate.language}: {foreign[:3]}") if foreign else None


def refusal(candidate: Candidate) -> Finding | None:
    found = _REFUSAL.search(candidate.answer) if _may_have(candidate.answer, _REFUSES_WITH) else None
    if found is None or found.group().lower() in candidate.passage.lower():
        return None
    return Finding("refusal", f"the answer declines: {found.group()!r}")


def prompt_leak(candidate: Candidate) -> Finding | None:
    """Words of the prompt's own instructions, or talk of a passage that the reader won't see."""
    pointer = _POINTS_AT_PROMPT.search(candidate.answer) if _may_have(candidate.answer, _POINTS_WITH) else None
    if pointer and pointer.group().lower() not in candidate.passage.lower():
        return Finding("prompt_leak", f"the answer speaks of its prompt: {pointer.group()!r}")
    length = _LEAK_TOKENS[candidate.language]
    leaked = shingles(candidate.answer, length) & shingles(candidate.instructions, length)
    if leaked:
        leaked = leaked - shingles(candidate.passage, length) - shingles(candidate.question, length)
    return Finding("prompt_leak", f"instructions in the answer: {' '.join(min(leaked))!r}") if leaked else None


def echo(candidate: Candidate) -> Finding | None:
    """The question given back, or a question in place of an answer."""
    answer, question = tokens(candidate.answer), tokens(candidate.question)
    if candidate.answer.rstrip(" \"'”’」").endswith(("?", "？")):
        return Finding("echo", "the answer is itself a question")
    if len(question) >= 3 and answer[: len(question)] == question:
        return Finding("echo", "the answer starts with the whole question")
    return None


def repetition(candidate: Candidate) -> Finding | None:
    again = said_again(candidate.answer, candidate.passage)
    return Finding("repetition", again) if again else None


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


def _may_have(answer: str, words: tuple[str, ...]) -> bool:
    text = lower(answer)
    return not text.isascii() or any(word in text for word in words)


def first_finding(candidate: Candidate, checks: tuple[Check, ...]) -> Finding | None:
    """The first thing wrong with the answer, in the order of the checks."""
    return next((finding for finding in (check(candidate) for check in checks) if finding), None)
