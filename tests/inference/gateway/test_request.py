"""What the gateway reads of a body, against what Python's own JSON reader makes of it."""

import json

import pytest

from textmill import tracing
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.gateway.request import ASSUMED_ANSWER, forwarded, parse


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b' {\n"x": {"model": "z"}, "model" : "a" } ',
        b'{"model":"a","model":"b"}',
        b'{"mod\\u0065l":"b","model":"a"}',
        b'{"model":"\\u4e03\\"\\n\\ud83d\\ude00"}',
        '{"model":"七"}'.encode(),
        b'{"model":"a","messages":"\\"model\\":\\"b\\""}',
        b'{"model":"a","x":NaN}',
        b'{"model":"a","x":"\\ud83d"}',
        b'{"model":"a","x":1e999,"y":123456789012345678901234567890}',
        b'{"model":"a","max_tokens":"many"}',
        b'\xef\xbb\xbf{"model":"a"}',
    ],
)
def test_the_model_is_the_one_that_the_engine_will_read(body):
    asked = parse(body)
    assert asked.model == json.loads(body)["model"]
    assert asked.body is body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model":"a"} x', "invalid_json"),
        (b"{'model':'a'}", "invalid_json"),
        (b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model":"\xff"}', "invalid_json"),
        (b"[]", "missing_model"),
        (b'"model"', "missing_model"),
        (b"{}", "missing_model"),
        (b'{"model":3}', "missing_model"),
        (b'{"model":""}', "missing_model"),
        (b'{"model":null}', "missing_model"),
    ],
)
def test_other_bodies_are_refused(body, code):
    with pytest.raises(OpenAIError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({}, ASSUMED_ANSWER),
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 20),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": None, "n": None}, ASSUMED_ANSWER),
        ({"max_tokens": -1, "n": "x"}, ASSUMED_ANSWER),
    ],
)
def test_the_cost_is_the_prompt_by_its_bytes_and_the_answer_by_its_bound(more, answer):
    body = json.dumps({"model": "a", "prompt": "word " * 100, **more}).encode()
    assert parse(body).cost == len(body) // 4 + answer


@pytest.mark.parametrize("more", [b'"x":1e0,"y":{"b":1,"a":[1.50,"\\u4e03"]}', b'"x":NaN,"y":"\\ud83d"'])
def test_another_name_leaves_all_else_as_it_was(more):
    body = b'{"model":"a",%b,"z":"\\"model\\":\\"a\\""}' % more
    asked = parse(body)
    renamed = asked.named('b"七')
    assert asked.named("a") is body
    assert str(json.loads(renamed)) == str({**json.loads(body), "model": 'b"七'})
    if b"NaN" not in more:
        assert b'{"b":1,"a":[1.50,"\\u4e03"]}' in renamed
        assert b":1e0," in renamed


def test_headers_that_could_end_a_line_are_not_passed_on():
    given = [(b"traceparent", b"a\r\nx: y"), (b"tracestate", b"fine"), (b"x-request-id", b"id")]
    request_id, lines = forwarded({"headers": given})
    assert request_id == "id"
    assert lines == b"Content-Type: application/json\r\nX-Request-Id: id\r\ntracestate: fine\r\n"


def test_while_tracing_is_on_the_engine_gets_our_span_instead_of_the_clients(collector):
    given = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), (b"tracestate", b"a=b")]
    with tracing.span("asked"):
        _, lines = forwarded({"headers": given})
        ours = tracing.header_line()
    assert ours in lines
    assert lines.count(b"traceparent") == 1
    assert lines.endswith(b"tracestate: a=b\r\n")
