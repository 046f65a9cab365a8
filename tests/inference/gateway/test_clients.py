"""OpenAI's own clients, sync and async, with what they can ask for: it all passes through unchanged, both ways."""

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel
from tests.inference.gateway.scripted import END, STREAM, event, whole

MESSAGES = [{"role": "user", "content": "How many lines has hexagram 7?"}]
BASE = {"id": "chatcmpl-1", "created": 1, "model": "small"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "lines_of",
            "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
            "strict": True,
        },
    }
]


class Hexagram(BaseModel):
    number: int
    lines: list[str]


def answer(message, **choice):
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", **choice}]
    return whole({**BASE, "object": "chat.completion", "choices": choices, "usage": USAGE})


def pieces(*deltas):
    def one(delta):
        choices = [{"index": 0, "delta": delta, "finish_reason": None}]
        return event(json.dumps({**BASE, "object": "chat.completion.chunk", "choices": choices}).encode())

    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    ended = event(json.dumps({**BASE, "object": "chat.completion.chunk", **last}).encode())
    return STREAM + b"".join(map(one, deltas)) + ended + END


@pytest.fixture
def replies(engine):
    """The engine answers with these bytes in turn."""
    waiting = []

    async def reply(request, writer):
        writer.write(waiting.pop(0))

    engine.script = reply
    return waiting


@pytest.fixture
def client(gate):
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_tool_calls(engine, client, replies):
    call = {"id": "call_1", "type": "function", "function": {"name": "lines_of", "arguments": '{"number": 7}'}}
    replies.append(answer({"content": None, "tool_calls": [call]}, finish_reason="tool_calls"))
    asked = {"model": "small", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "auto"}
    [got] = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert got.model_dump() == call
    assert engine.requests[0].json == asked


def test_tool_calls_in_a_stream(client, replies):
    deltas = [
        {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "c", "function": {"name": "lines_of", "arguments": ""}}],
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"number"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 7}"}}]},
    ]
    replies.append(pieces(*deltas))
    chunks = client.chat.completions.create(model="small", messages=MESSAGES, tools=TOOLS, stream=True)
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in calls) == '{"number": 7}'


def test_structured_outputs(engine, client, replies):
    replies.append(answer({"content": '{"number": 7, "lines": ["yin", "yang"]}'}))
    parsed = client.chat.completions.parse(model="small", messages=MESSAGES, response_format=Hexagram)
    assert parsed.choices[0].message.parsed == Hexagram(number=7, lines=["yin", "yang"])
    assert engine.requests[0].json["response_format"]["json_schema"]["name"] == "Hexagram"


def test_structured_outputs_in_a_stream(client, replies):
    replies.append(pieces({"role": "assistant", "content": '{"number": 7,'}, {"content": ' "lines": []}'}))
    with client.chat.completions.stream(model="small", messages=MESSAGES, response_format=Hexagram) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == Hexagram(number=7, lines=[])


def test_logprobs(engine, client, replies):
    token = {"token": "七", "logprob": -0.25, "bytes": [228, 184, 131], "top_logprobs": []}
    replies.append(answer({"content": "七"}, logprobs={"content": [token], "refusal": None}))
    got = client.chat.completions.create(model="small", messages=MESSAGES, logprobs=True, top_logprobs=2)
    assert got.choices[0].logprobs.content[0].model_dump() == token
    assert (engine.requests[0].json["logprobs"], engine.requests[0].json["top_logprobs"]) == (True, 2)


def test_what_openai_does_not_know_passes_too(engine, client, replies):
    replies.append(answer({"content": "x", "reasoning": "because"}))
    more = {"guided_choice": ["yin", "yang"], "top_k": 3}
    got = client.chat.completions.create(model="small", messages=MESSAGES, extra_body=more)
    assert got.choices[0].message.reasoning == "because"
    assert {name: engine.requests[0].json[name] for name in more} == more


def test_a_raw_answer_has_the_requests_id(client, replies):
    replies.append(answer({"content": "x"}))
    raw = client.chat.completions.with_raw_response.create(
        model="small", messages=MESSAGES, extra_headers={"X-Request-Id": "mine"}
    )
    assert (raw.headers["x-request-id"], raw.request_id) == ("mine", "mine")


def test_the_engines_refusals_keep_their_class(client, replies):
    for status, error in ((400, openai.BadRequestError), (404, openai.NotFoundError), (429, openai.RateLimitError)):
        replies.append(whole({"error": {"message": "too long", "type": "x", "code": status}}, status=status))
        with pytest.raises(error, match="too long"):
            client.chat.completions.create(model="small", messages=MESSAGES)


def test_the_async_client_plain_streamed_and_structured(gate, replies):
    replies += [
        answer({"content": "six"}),
        pieces({"content": "s"}, {"content": "ix"}),
        answer({"content": '{"number": 7, "lines": []}'}),
        whole({**BASE, "object": "text_completion", "choices": [{"index": 0, "text": "six", "finish_reason": "stop"}]}),
    ]

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=0) as client:
            plain = await client.chat.completions.create(model="small", messages=MESSAGES)
            stream = await client.chat.completions.create(model="small", messages=MESSAGES, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            parsed = await client.chat.completions.parse(model="small", messages=MESSAGES, response_format=Hexagram)
            legacy = await client.completions.create(model="small", prompt="How many?")
            models = [model.id async for model in client.models.list()]
        return plain.choices[0].message.content, text, parsed.choices[0].message.parsed, legacy.choices[0].text, models

    plain, text, parsed, legacy, models = asyncio.run(ask())
    assert (plain, text, legacy, models) == ("six", "six", "six", ["small"])
    assert parsed == Hexagram(number=7, lines=[])


def test_a_client_that_retries_by_itself_comes_through_a_restart(gate, engine, replies):
    """OpenAI's clients come back after a 503 with Retry-After, here one of the engine's own."""
    replies += [whole({"error": {"message": "starting"}}, b"Retry-After: 0\r\n", 503), answer({"content": "six"})]
    with openai.OpenAI(base_url=f"{gate.url}/v1", api_key="none", max_retries=2) as client:
        got = client.chat.completions.create(model="small", messages=MESSAGES)
    assert got.choices[0].message.content == "six"
    assert len(engine.requests) == 2
