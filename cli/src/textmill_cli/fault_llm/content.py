"""Says what a well-behaved model would: sentences of the passage that the prompt shows, in the form that is asked for.

A JSON schema is followed by filling each field by its type and name. A prompt that shows an example of a JSON list of
questions and answers gets such a list. All else is one sentence of the passage.
"""

import json
import re
from collections.abc import Mapping

from pydantic import JsonValue

from textmill_cli.fault_llm.prompt import Prompt
from textmill_cli.fault_llm.replies import Say

_ITEMS = 3
_dump = json.JSONEncoder(ensure_ascii=False).encode
_PAIR = re.compile(r'"question"\s*:.*"answer"\s*:', re.DOTALL)
_ASKS = ("question", "instruction", "query", "ask", "phrasing")
_NAMES = ("title", "heading", "subject", "name", "topic", "content")
Schema = Mapping[str, JsonValue]


def answer(prompt: Prompt, body: Mapping[str, JsonValue]) -> Say:
    """A whole answer, with the tokens that a tokenizer would count, roughly."""
    text = _text(prompt, body)
    return Say(text, "stop", tokens(prompt.text), tokens(text))


def refusal(prompt: Prompt) -> str:
    return "抱歉，我无法回答这个问题。" if prompt.chinese else "I'm sorry, but I can't help with that request."


def tokens(text: str) -> int:
    """About one for each Chinese character and one for four others."""
    wide = len(text.encode()) - len(text)
    return 1 + wide // 2 + (len(text) - wide // 2) // 4


def _text(prompt: Prompt, body: Mapping[str, JsonValue]) -> str:
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if isinstance(form, dict) and kind == "json_schema" and isinstance(wanted := form.get("json_schema"), dict):
        schema = wanted.get("schema")
        return _dump(_Filler(prompt, schema if isinstance(schema, dict) else {}).whole())
    if _PAIR.search(prompt.text):
        return _dump([{"question": _question(prompt, n), "answer": _sentence(prompt, n)} for n in range(_ITEMS)])
    if kind == "json_object":
        return _dump({"answer": prompt.answer})
    return prompt.answer


def _sentence(prompt: Prompt, item: int) -> str:
    return prompt.sentences[item % len(prompt.sentences)]


def _title(prompt: Prompt, item: int) -> str:
    """The first words of a sentence."""
    sentence = _sentence(prompt, item).strip(" .。!?！？#")
    return sentence[:8] if prompt.chinese else " ".join(sentence.split()[:4])


def _question(prompt: Prompt, item: int) -> str:
    title = _title(prompt, item)
    return f"关于{title}，有什么说法？" if prompt.chinese else f"What is known of {title}?"


class _Filler:
    """Makes a value that is valid under a JSON schema, out of the passage. Knows the keywords that pydantic writes."""

    def __init__(self, prompt: Prompt, schema: Schema) -> None:
        self._prompt = prompt
        self._root = schema

    def whole(self) -> JsonValue:
        return self._value(self._root, "answer", None)

    def _value(self, schema: Schema, name: str, item: int | None) -> JsonValue:
        """``item`` is the place in the innermost list, None outside of any."""
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(choices := schema.get("enum"), list):
            return choices[0]
        match schema.get("type"):
            case "object":
                fields = schema.get("properties")
                return {key: self._value(_schema(field), key, item) for key, field in _schema(fields).items()}
            case "array":
                return [self._value(_schema(schema.get("items")), name, n) for n in range(self._length(schema))]
            case "boolean":
                return True
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "null":
                return None
        return self._string(name, item)

    def _resolved(self, schema: Schema) -> Schema:
        """Follows ``$ref``, and takes the first of several forms."""
        if isinstance(reference := schema.get("$ref"), str):
            found: JsonValue = dict(self._root)
            for step in reference.removeprefix("#/").split("/"):
                found = _schema(found).get(step)
            return self._resolved(_schema(found))
        for several in ("anyOf", "oneOf", "allOf"):
            if isinstance(forms := schema.get(several), list) and forms:
                return self._resolved(_schema(forms[0]))
        return schema

    def _length(self, schema: Schema) -> int:
        least, most = schema.get("minItems"), schema.get("maxItems")
        wanted = max(_ITEMS, least) if isinstance(least, int) else _ITEMS
        return min(wanted, most) if isinstance(most, int) else wanted

    def _string(self, name: str, item: int | None) -> str:
        field = name.lower()
        if any(word in field for word in _ASKS):
            return _question(self._prompt, item or 0)
        if any(word in field for word in _NAMES):
            return _title(self._prompt, item or 0)
        return self._prompt.answer if item is None else _sentence(self._prompt, item)


def _schema(value: JsonValue) -> Schema:
    return value if isinstance(value, dict) else {}
