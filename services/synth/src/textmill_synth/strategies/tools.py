"""The LLM writes an exchange in which a tool of the owner's is called, and its reply is a piece of the passage."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jsonschema
from pydantic import JsonValue, field_validator

from textmill.contracts.datasets import Message, Tool, ToolCall
from textmill.contracts.documents import Language, Passage
from textmill.errors import BadRequest
from textmill_synth.checks import Finding
from textmill_synth.evidence import evidence_missing, locate_evidence
from textmill_synth.ladder import Found, Ladder, Shape
from textmill_synth.llm import Schema
from textmill_synth.numerals import numbers
from textmill_synth.prompts import Prompt
from textmill_synth.responses import Item, Text
from textmill_synth.strategies.base import Answer, Rejection, Request, Settlement, Source, Span, rejected
from textmill_synth.strategies.grounded import Ground
from textmill_synth.topics import Phrasing, Topic


class Exchange(Item):
    """``result`` is what the tool replies: words of the passage."""

    question: Text
    tool: Text
    arguments: dict[str, JsonValue]
    result: Text
    answer: Text

    @field_validator("arguments", mode="before")
    @classmethod
    def _in_plain_text(cls, value: object) -> object:
        """Plain lines hold the arguments as JSON."""
        return json.loads(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class ToolCalls:
    """One exchange a passage. The arguments must validate against the tool's own schema, and invent no number."""

    ladder: Ladder
    prompts: dict[Language, Prompt]
    tools: Sequence[Tool]
    schemas: Mapping[str, Schema]
    shape: Shape[Exchange]
    name: ClassVar[Literal["tools"]] = "tools"
    after_others: ClassVar[bool] = False

    def plan(self, source: Source) -> Sequence[Request]:
        return [Request([Topic("tool-call")])]

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        passage = source.passage
        prompt = self.prompts[passage.language]
        found = await self.ladder.ask(self.name, passage, prompt, self.shape, shown=passage.text, tools=self.tools)
        if isinstance(found, Rejection):
            return [found]
        return [self._checked(request.topics[0], passage, prompt, found[0])]

    def _checked(self, topic: Topic, passage: Passage, prompt: Prompt, found: Found[Exchange]) -> Settlement:
        item = found.item
        if isinstance(item, Finding):
            return rejected(item, found.prompted)
        ground = Ground(passage, prompt.instructions, passage.text)
        span = locate_evidence(item.result, passage.text)
        finding = (
            ground.question_finding(item.question, asks=False)
            or self._call_finding(item, passage)
            or (evidence_missing(item.result) if span is None else None)
            or ground.answer_finding(item.question, item.answer, span)
        )
        if finding or span is None:
            return rejected(finding or evidence_missing(item.result), found.prompted)
        asked = replace(topic, ask=(Phrasing("written", item.question.strip()),))
        called = _called(passage, item, span)
        return Answer(asked, item.answer.strip(), span, found.prompted, between=called, tools=self.tools)

    def _call_finding(self, item: Exchange, passage: Passage) -> Finding | None:
        if item.tool not in self.schemas:
            return Finding("tool_call", f"there is no tool {item.tool!r}, only {sorted(self.schemas)}")
        try:
            jsonschema.validate(item.arguments, self.schemas[item.tool])
        except jsonschema.ValidationError as exc:
            return Finding("tool_call", f"the arguments don't fit {item.tool}: {exc.message[:120]}")
        arguments = json.dumps(item.arguments, ensure_ascii=False)
        invented = numbers(arguments) - numbers(f"{passage.text}\n{passage.heading or ''}")
        return Finding("ungrounded_number", f"in the arguments: {sorted(invented)}") if invented else None


def tool_calls(ladder: Ladder, prompts: dict[Language, Prompt], tools: Sequence[Tool]) -> ToolCalls:
    """Raises ``BadRequest`` for a tool whose parameters are no JSON schema, and for two of one name."""
    schemas = {tool.name: _parameters(tool) for tool in tools}
    if len(schemas) < len(tools):
        raise BadRequest(f"two tools have one name: {[tool.name for tool in tools]}; give each its own")
    return ToolCalls(ladder, prompts, tools, schemas, Shape(Exchange, texts_each=4, item_schema=_schema(schemas)))


def _parameters(tool: Tool) -> Schema:
    try:
        schema = json.loads(tool.parameters)
        jsonschema.Draft202012Validator.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as exc:
        raise BadRequest(f"the parameters of tool {tool.name!r} are no JSON schema: {exc}") from exc
    if not isinstance(schema, dict):
        raise BadRequest(f"the parameters of tool {tool.name!r} must be a JSON schema of an object, not {schema!r}")
    return schema


def _schema(schemas: Mapping[str, Schema]) -> Schema:
    """The form of an exchange, with the names and arguments of these tools."""
    schema = Exchange.model_json_schema()
    schema["properties"]["tool"] = {"type": "string", "enum": list(schemas)}
    schema["properties"]["arguments"] = {"anyOf": [dict(parameters) for parameters in schemas.values()]}
    return schema


def _called(passage: Passage, item: Exchange, span: Span) -> Sequence[Message]:
    """The call and the tool's reply. The reply is the passage's own words."""
    arguments = json.dumps(item.arguments, ensure_ascii=False)
    identity = "\x1f".join((passage.passage_id, item.tool, arguments))
    call = ToolCall(
        id=f"call_{hashlib.sha256(identity.encode()).hexdigest()[:12]}", name=item.tool, arguments=arguments
    )
    return (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content=passage.text[slice(*span)], tool_call_id=call.id),
    )
