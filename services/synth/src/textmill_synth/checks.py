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
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_FOREIGN_SCRIPT = re.compile(r"[\u0400-\u04ff\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u3040-\u30ff\uac00-\ud7af]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_ENGLISH_GLUE_LIST = "the a an is are was were be of to in and or that it its for with on as by from this has at not"
_ENGLISH_GLUE = frozenset(_ENGLISH_GLUE_LIST.split())
_FOREIGN_GLUE_LIST = """
der die das und ist nicht mit von zu den dem ein eine wird auf le la les des est une un et du au aux il elle ne pas dans
qui que el los las en es por para del y se su não em foi da do na os uma il di che per non della gli sono het een van a
"""
_FOREIGN_GLUE = frozenset(_FOREIGN_GLUE_LIST.split())
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
_TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_]+(?:['’][^\W_]+)?")
_LOOP = re.compile(r"(\S.{0,40}?)(?:[\s,，、;；]*\1){3,}", re.DOTALL)
_PART = re.compile(r"[.!?;,。！？；，、\n]+")
_LONG_BLANK = re.compile(r"\s{8,}|\n{4,}")
_LEAK_TOKENS = {"en": 5, "zh": 4}


def empty(candidate: Candidate) -> Finding | None:
    if _TOKEN.search(candidate.answer) and not _NOTHING.fullmatch(candidate.answer):
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
    foreign = [c for c in _FOREIGN_SCRIPT.findall(candidate.answer) if not _in_source(c, candidate)]
    if candidate.language == "en":
        foreign += [c for c in _HAN.findall(candidate.answer) if not _in_source(c, candidate)]
        foreign = foreign or _foreign_words(candidate)
    else:
        foreign += [w for w in _LATIN_WORD.findall(candidate.answer) if not _in_source(w, candidate)]
        if not foreign and not _HAN.search(candidate.answer) and _LATIN_WORD.search(candidate.answer):
            whole = candidate.answer.strip().lower() in candidate.passage.lower()
            foreign = [] if whole else candidate.answer.split()
    return Finding("language", f"not in {candidate.language}: {foreign[:3]}") if foreign else None


def _in_source(word: str, candidate: Candidate) -> bool:
    return word.lower() in candidate.passage.lower() or word.lower() in candidate.question.lower()


def _foreign_words(candidate: Candidate) -> list[str]:
    """The answer's own words where they are of another European tongue: by their small words, or by the lack of any."""
    words = _tokens(candidate.answer)
    source = candidate.passage.lower()
    other = [w for w in words if w in _FOREIGN_GLUE or not w.isascii()]
    own = [w for w in words if w not in source]
    if len(other) >= 2 and len(other) > sum(w in _ENGLISH_GLUE for w in words) and len(own) * 3 >= len(words):
        return other
    accented = any(not w.isascii() for w in own)
    return own if accented and len(words) >= 6 and not _ENGLISH_GLUE & set(words) else []


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
    said = [tuple(_tokens(part)) for part in _PART.split(candidate.answer)]
    again = next((part for part in said if len(part) > 1 and said.count(part) > 1), None)
    if again and not _says_twice(candidate.passage, again):
        return Finding("repetition", f"said more than once: {' '.join(again)!r}")
    tokens = _tokens(candidate.answer)
    repeated = {run: count for run, count in _runs(tokens, 4).items() if count > 1}
    if len(tokens) >= 16 and sum(repeated.values()) > len(tokens) / 3 and not _repeats(candidate.passage, repeated):
        return Finding("repetition", f"of {len(tokens)} words a third and more repeat the same four")
    return None


def _says_twice(passage: str, part: tuple[str, ...]) -> bool:
    return [tuple(_tokens(p)) for p in _PART.split(passage)].count(part) > 1


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


def _repeats(passage: str, runs: dict[tuple[str, ...], int]) -> bool:
    """Whether the passage itself says most of the runs more than once, as a list of prices does."""
    own = _runs(_tokens(passage), 4)
    return 2 * sum(own.get(run, 0) > 1 for run in runs) > len(runs)


def _runs(tokens: list[str], length: int) -> dict[tuple[str, ...], int]:
    """How often each sequence of ``length`` tokens occurs."""
    counts: dict[tuple[str, ...], int] = {}
    for i in range(len(tokens) - length + 1):
        run = tuple(tokens[i : i + length])
        counts[run] = counts.get(run, 0) + 1
    return counts
