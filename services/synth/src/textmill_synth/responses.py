"""Takes an LLM's response apart, strictly: what isn't in the form that was asked for is a finding.

A response is one item or a list of them, as JSON or as plain lines. The further ways of reading one lose no word and
add none: ``repaired`` mends brackets, quotes and what stands around the JSON, ``whole_items`` keeps what came before a
list was cut off. Knows nothing of calls or passages.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from textmill_synth.checks import Finding


class Item(BaseModel):
    """What a response holds once, or several times in a list."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, Field(min_length=1)]


class Answered(Item):
    answer: Text


class Quoted(Answered):
    """``evidence`` is the place in the passage that the answer is taken from, word for word."""

    evidence: Text


class Pair(Item):
    question: Text
    answer: Text
    evidence: Text


class Summarised(Item):
    """``content`` is the title of what is summarised."""

    content: Text
    summary: Text


T = TypeVar("T", bound=Item)
_TEXT_FORM = re.compile(r'content: ?"([^"\n]+)"\n+summary: ?"([^"\n]+)"')
_LABEL = re.compile(r"^\W*(\w+)\W*[:：]", re.MULTILINE)
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/nrtbf]))')
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_STRAY_QUOTE = re.compile(r"""(?<![\s(\[“‘"'])(["'])$""")
_FENCE = re.compile(r"\s*```\s*$")
_LINE = re.compile(r"(\w+) ?[:：] ?(.+)")
_NO_LETTER = re.compile(r"[\W_]+")


def strict_json(raw: str) -> JsonValue | Finding:
    """The value, when the response is JSON and nothing else and no key stands in an object twice."""
    try:
        value: JsonValue = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        return Finding("format", f"not the JSON that was asked for: {exc}")
    return value


def repaired_json(raw: str) -> JsonValue | Finding:
    """The value behind slips of syntax: fences, talk around the JSON, quotes, commas, a bracket too few.

    Not when the JSON breaks off, nor when the mended value hasn't all of its words, each string as it was said.
    """
    body = _whole_body(raw)
    if isinstance(body, Finding):
        return body
    try:
        value: JsonValue = json.loads(repair_json(body, skip_json_loads=True, ensure_ascii=False))
    except (ValueError, RecursionError) as exc:
        return Finding("format", f"no JSON can be made out: {exc}")
    said = _unescaped(body)
    if _letters(said) != _letters(_unescaped(json.dumps(value, ensure_ascii=False))):
        return Finding("format", "mending the JSON would change its words")
    altered = [text for text in _strings(value) if (text not in said and text not in body) or _has_stray_quote(text)]
    return Finding("format", f"mending the JSON would change {altered[0][:40]!r}") if altered else value


def whole_items(raw: str) -> list[JsonValue]:
    """The objects of the first list that are whole, up to where the response was cut off or went wrong."""
    decoder, items = json.JSONDecoder(object_pairs_hook=_unique), list[JsonValue]()
    at = raw.find("[") + 1
    while at:
        at = _next_object(raw, at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(raw, at)
        except (ValueError, RecursionError):
            break
        items.append(value)
    return items


def one_item(value: JsonValue | Finding, item: type[T]) -> T | Finding:
    if isinstance(value, Finding):
        return value
    try:
        return item.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return Finding("format", f"not the JSON object that was asked for: {where} {first['msg']}")


def listed(value: JsonValue | Finding) -> Sequence[JsonValue] | Finding:
    """What is listed in ``{"items": [...]}``, and no other field."""
    if isinstance(value, Finding):
        return value
    if isinstance(value, dict) and set(value) == {"items"} and isinstance(value["items"], list):
        return value["items"]
    return Finding("format", "not an object with the one field 'items', a list")


def labelled_items(raw: str, item: type[T]) -> list[T | Finding] | Finding:
    """Items in plain lines ``<field>: <text>``, every field once and in order, and nothing else."""
    fields, items = list(item.model_fields), list[dict[str, JsonValue]]()
    for line in filter(None, map(str.strip, raw.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None or match[1] not in fields:
            return Finding("format", f"a line doesn't start with one of {fields}: {line[:40]!r}")
        if match[1] == fields[0]:
            items.append({})
        if not items or match[1] != fields[len(items[-1]) % len(fields)] or match[1] in items[-1]:
            return Finding("format", f"{match[1]!r} stands where another line was asked for")
        items[-1][match[1]] = match[2]
    return [one_item(fields_found, item) for fields_found in items] or Finding("empty", "no line was said")


def text_summary(raw: str) -> Summarised | Finding:
    """``content`` and ``summary``, each once, each quoted, in this order, and nothing else."""
    match = _TEXT_FORM.fullmatch(raw.strip())
    if match is None or _repeated_label(raw):
        return Finding("format", _text_slip(raw))
    return Summarised(content=match[1].strip(), summary=match[2].strip())


def _repeated_label(raw: str) -> str | None:
    return next((label for label in ("content", "summary") if raw.lower().count(f"{label}:") > 1), None)


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


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a field stands there twice among {[name for name, _ in pairs]}")
    return found


def _whole_body(raw: str) -> str | Finding:
    """From the first bracket to the last, unless something was still open when the response ended."""
    start = min((at for at in (raw.find("{"), raw.find("[")) if at >= 0), default=None)
    if start is None:
        return Finding("format", "there is no JSON in the response")
    text = _FENCE.sub("", raw[start:].rstrip())
    if text.endswith('"'):
        return text
    end = max(text.rfind("}"), text.rfind("]")) + 1
    return text[:end] if end and not set('{["') & set(text[end:]) else Finding("truncated", "the JSON breaks off")


def _has_stray_quote(text: str) -> bool:
    """Whether the text ends in a quotation mark that it doesn't open: one that belonged to the JSON."""
    mark = _STRAY_QUOTE.search(text)
    return mark is not None and re.search(rf"(?:^|[\s(\[]){mark[1]}", text[: mark.start()]) is None


def _next_object(raw: str, at: int) -> int:
    """Where the next object starts, if nothing but white space and a comma is before it; else -1."""
    rest = raw[at:].lstrip(" \t\r\n,")
    return len(raw) - len(rest) if rest.startswith("{") else -1


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _ESCAPED.get(m[2], m[2]), text)


def _letters(text: str) -> str:
    return _NO_LETTER.sub("", text)


def _strings(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
