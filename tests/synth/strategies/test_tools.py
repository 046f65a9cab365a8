"""Tool calls: arguments that fit the tool's schema, a reply in the passage's own words."""

import json

import pytest
from scripted import Says, generate, in_turn, passages

from textmill.contracts.datasets import Tool
from textmill.contracts.synthesis import SynthOptions
from textmill.errors import BadRequest

TEXT = "The lighthouse on Fern Island was built in 1821. It is painted red."
PARAMETERS = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "limit": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL = Tool(name="look_up", description="Looks up a building.", parameters=json.dumps(PARAMETERS))
OPTIONS = SynthOptions(strategies=("tools",), tools=(TOOL,))
GOOD = {
    "question": "When was the lighthouse on Fern Island built?",
    "tool": "look_up",
    "arguments": {"name": "Fern Island"},
    "result": "was built in 1821",
    "answer": "The lighthouse on Fern Island was built in 1821.",
}


def test_a_call_and_its_reply_stand_between_question_and_answer() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(json.dumps(GOOD)))
    (answer,) = run.answers()
    call, reply = answer.between
    assert (call.role, reply.role) == ("assistant", "tool")
    assert call.tool_calls[0].name == "look_up"
    assert json.loads(call.tool_calls[0].arguments) == {"name": "Fern Island"}
    assert reply.tool_call_id == call.tool_calls[0].id
    assert reply.content == "was built in 1821"
    assert answer.tools == (TOOL,)
    assert run.requests[0].schema is not None
    assert run.requests[0].schema["properties"]["tool"] == {"type": "string", "enum": ["look_up"]}  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tool": "delete_all"}, "tool_call"),
        ({"arguments": {}}, "tool_call"),
        ({"arguments": {"name": "Fern Island", "limit": "ten"}}, "tool_call"),
        ({"arguments": {"name": "Fern Island", "limit": 77}}, "ungrounded_number"),
        ({"arguments": "Fern Island"}, "format"),
        ({"result": "built in 1999"}, "evidence_not_in_passage"),
        ({"answer": "The lighthouse on Fern Island was built in 1999."}, "ungrounded_number"),
    ],
)
def test_calls_that_do_not_hold_up(changed: dict[str, object], reason: str) -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(json.dumps({**GOOD, **changed})))
    assert run.reasons() == {reason: 1}


def test_a_cut_off_call() -> None:
    run = generate(OPTIONS, passages(TEXT), in_turn(Says(json.dumps(GOOD)[:80], "length"), json.dumps(GOOD)))
    assert [a.prompted.rung for a in run.answers() if a.prompted] == ["asked_again"]


def test_in_plain_lines() -> None:
    lines = "\n".join(f"{k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in GOOD.items())
    assert len(generate(OPTIONS, passages(TEXT), in_turn(lines), form="text").answers()) == 1


@pytest.mark.parametrize("parameters", ["{", '{"type": "nonsense"}', "true"])
def test_a_tool_without_a_schema_is_refused_before_a_call(parameters: str) -> None:
    options = OPTIONS.model_copy(update={"tools": (TOOL.model_copy(update={"parameters": parameters}),)})
    with pytest.raises(BadRequest, match="look_up"):
        generate(options, passages(TEXT), in_turn("no"))


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(BadRequest, match="one name"):
        generate(OPTIONS.model_copy(update={"tools": (TOOL, TOOL)}), passages(TEXT), in_turn("no"))
