"""Takes an LLM's response apart, strictly: what isn't in the form that was asked for is a finding, never mended.

Two forms: a JSON object, and the text form ``content:"..."`` newline ``summary:"..."``.
"""

import re
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from textmill_synth.checks import Finding

_TEXT_FORM = re.compile(r'content: ?"([^"\n]+)"\n+summary: ?"([^"\n]+)"')
_LABEL = re.compile(r"^\W*(\w+)\W*[:：]", re.MULTILINE)


class Answered(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    answer: str


class Summarised(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    content: str
    summary: str


@dataclass(frozen=True)
class TitledSummary:
    title: str
    summary: str


def json_answer(raw: str) -> str | Finding:
    try:
        return Answered.model_validate_json(raw).answer
    except ValidationError as exc:
        return Finding("format", _json_slip(exc))


def json_summary(raw: str) -> TitledSummary | Finding:
    try:
        parsed = Summarised.model_validate_json(raw)
    except ValidationError as exc:
        return Finding("format", _json_slip(exc))
    return TitledSummary(parsed.content, parsed.summary)


def text_summary(raw: str) -> TitledSummary | Finding:
    """``content`` and ``summary``, each once, each quoted, in this order, and nothing else."""
    match = _TEXT_FORM.fullmatch(raw.strip())
    if match is None or _repeated_label(raw):
        return Finding("format", _text_slip(raw))
    return TitledSummary(match[1].strip(), match[2].strip())


def _repeated_label(raw: str) -> str | None:
    return next((label for label in ("content", "summary") if raw.lower().count(f"{label}:") > 1), None)


def _json_slip(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"not the JSON object that was asked for: {'.'.join(map(str, first['loc']))} {first['msg']}"


def _text_slip(raw: str) -> str:
    """What is wrong with a response that isn't in the text form, in a few words."""
    labels = [label.lower() for label in _LABEL.findall(raw)]
    if repeated := _repeated_label(raw):
        return f"{repeated!r} stands there more than once"
    for wanted in ("content", "summary"):
        if wanted not in labels:
            return f"no line starts with {wanted!r}"
    extra = [label for label in labels if label not in ("content", "summary")]
    if extra:
        return f"an extra block {extra[0]!r}"
    if raw.count('"') != 4:
        return f"{raw.count(chr(34))} double quotes where there must be 4"
    return 'not two lines content:"..." and summary:"..."'
