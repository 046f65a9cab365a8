"""From the bytes on the wire to what is kept of them."""

import json

import pytest
from traffic_made import exchanged

from textmill_inference.flywheel.reading import Unreadable, read_exchange


def stream(*events):
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def delta(text=None, index=0, finish=None, **more):
    return {"choices": [{"index": index, "delta": {"content": text, **more}, "finish_reason": finish}]}


def test_a_whole_answer():
    found = read_exchange(exchanged(3))
    assert (found.request_id, found.model, found.upstream, found.group) == ("req_3", "small", "small-1", "support")
    assert found.messages == [{"role": "user", "content": "How many lines?"}]
    assert (found.answer, found.finish_reason, found.prompt_tokens, found.output_tokens) == ("Six.", "stop", 7, 3)
    assert (found.seconds, found.ttft_s) == (2.0, 0.5)


def test_a_stream_is_put_together_and_other_choices_are_left_out():
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    answer = stream(delta("Six"), delta("no", 1), delta(" lines"), delta(finish="stop"), usage)
    found = read_exchange(exchanged(streamed=True, answer=answer))
    assert (found.answer, found.finish_reason, found.output_tokens) == ("Six lines", "stop", 2)


def test_a_tool_call_in_pieces():
    pieces = [
        delta(tool_calls=[{"index": 0, "function": {"name": "look", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"at": '}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "7}"}}], finish="tool_calls"),
    ]
    found = read_exchange(exchanged(streamed=True, answer=stream(*pieces)))
    assert found.tool_calls == [{"name": "look", "arguments": '{"at": 7}'}]


def test_a_stream_that_was_cut_keeps_what_there_is_and_isnt_complete():
    answer = stream(delta("Six"), delta(" lines"))[:-60]
    found = read_exchange(exchanged(streamed=True, answer=answer, answer_cut=True))
    assert (found.answer, found.complete) == ("Six", False)


def test_a_completion():
    answer = json.dumps({"choices": [{"index": 0, "text": "six", "finish_reason": "length"}]}).encode()
    found = read_exchange(exchanged(route="completions", request={"model": "m", "prompt": "How many"}, answer=answer))
    assert (found.prompt, found.messages, found.answer, found.finish_reason) == ("How many", (), "six", "length")


def test_an_error_has_no_answer():
    found = read_exchange(exchanged(status=429, answer=b'{"error": {"message": "later"}}'))
    assert (found.status, found.answer) == (429, "")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"request": {"model": "m", "messages": [], "store": False}}, "store_false"),
        ({"answer": b"<html>"}, "answer"),
        ({"answer": b"[]"}, "answer"),
    ],
)
def test_what_is_not_to_be_kept_or_cant_be_read(changed, reason):
    with pytest.raises(Unreadable, match=f"^{reason}$"):
        read_exchange(exchanged(**changed))
