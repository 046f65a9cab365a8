"""Turns a question into a subordinate clause: "Which lines of X are solid?" into "which lines of X are solid".

English needs the verb moved, so only questions of known form are turned; for the others the answer is None.
"""

import re

from textmill.contracts.documents import Language
from textmill_synth.asking.mention import Mention

_ASKING = re.compile(r"(?:what|which|who|whom|whose|where|when|why|how)\b", re.IGNORECASE)
_AUXILIARY = re.compile(
    r"\b(?:is|are|was|were|does|do|did|can|could|will|would|shall|should|may|might|must|has|have|had)\b", re.IGNORECASE
)
_DOES = re.compile(r"(.*\S) (does|do)", re.IGNORECASE)
_COPULA = re.compile(
    r"(what|who|where) (is|are|was|were)((?: the| a| an)?(?: [\w-]+){0,4} (?:of|in|for|behind))?", re.I
)
_VERB = re.compile(r" ([a-z]+)((?: .*)?)")
_NOT_A_VERB = re.compile(r"\w+ly|also|even|still|not|and|or|in|on|of|at|for|with")
_NOT_ASKING_ZH = re.compile("^(?:请|我|把|你|您|有人|说|写|讲|给|能|用|列|那|解释|介绍|描述|告诉)")
_QUESTION_WORD_ZH = re.compile("什么|哪|怎|几|多少|谁|何|为何")


def as_clause(question: str, mention: Mention | None, language: Language) -> str | None:
    """The question as a clause, without its question mark; None where these rules don't know how."""
    return _chinese(question) if language == "zh" else _english(question, mention)


def _chinese(question: str) -> str | None:
    body = question.rstrip("？?")
    if body == question or re.search("[，。？！；： ]", body):
        return None
    return body if _QUESTION_WORD_ZH.search(body) and not _NOT_ASKING_ZH.match(body) else None


def _english(question: str, mention: Mention | None) -> str | None:
    body = question.removesuffix("?")
    if mention is None or body == question or re.search(r"[.?!:;]", body) or not _ASKING.match(body):
        return None
    before, named, after = body[: mention.start].rstrip(), body[mention.start : mention.end], body[mention.end :]
    clause = _after_does(before, named, after) or _after_copula(before, named, after) or _as_it_stands(before, body)
    return clause and clause[0].lower() + clause[1:]


def _after_does(before: str, named: str, after: str) -> str | None:
    """ "what does X stand for": "what X stands for"."""
    does, verb = _DOES.fullmatch(before), _VERB.fullmatch(after)
    if not does or not verb or _AUXILIARY.search(does[1]) or _NOT_A_VERB.fullmatch(verb[1]):
        return None
    return f"{does[1]} {named} {_third_person(verb[1]) if does[2].lower() == 'does' else verb[1]}{verb[2]}"


def _after_copula(before: str, named: str, after: str) -> str | None:
    """ "what is the meaning of X": "what the meaning of X is"."""
    copula = _COPULA.fullmatch(before)
    if not copula or after.strip() or _AUXILIARY.search(copula[3] or ""):
        return None
    return f"{copula[1]}{copula[3] or ''} {named} {copula[2]}"


def _as_it_stands(before: str, body: str) -> str | None:
    """Where the question word is itself the subject, the order stays: "which lines of X are solid"."""
    starts_with_noun = re.match(r"(?:which|what) \w+|who \w+", before, re.IGNORECASE)
    return body if starts_with_noun and not _AUXILIARY.search(before) else None


def _third_person(verb: str) -> str:
    if verb == "have":
        return "has"
    if re.search(r"(?:s|x|z|ch|sh|o)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"
