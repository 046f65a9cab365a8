"""A trace says when requests came and how long they were, in the very form that the load test reads."""

import pytest
from traffic_made import logged, store_with

from textmill.contracts.load import TraceEntry
from textmill.contracts.traffic import NewTrace
from textmill.errors import BadRequest, NotFound
from textmill_inference.flywheel.segments import delete
from textmill_inference.flywheel.traces import delete_trace, make_trace, read_trace, traces_with
from textmill_inference.loadtest.prompts import read_trace as read_trace_for_load


def lines(store, manifest) -> list[TraceEntry]:
    """As the load test reads them."""
    return list(read_trace_for_load(store, manifest.lines_key))


def test_arrivals_and_lengths():
    store = store_with(logged(5, output_tokens=9), logged(2), logged(9, status=503, output_tokens=None))
    manifest = make_trace(store, NewTrace())
    assert [(e.at_s, e.prompt_tokens, e.output_tokens) for e in lines(store, manifest)] == [
        (0.0, 7, 3),
        (3.0, 7, 9),
        (7.0, 7, 6),
    ]
    assert (manifest.requests, manifest.seconds, manifest.prompt_tokens, manifest.output_tokens) == (3, 7.0, 21, 18)
    assert all(not entry.messages for entry in lines(store, manifest))
    assert b"lines?" not in store.get(manifest.lines_key)
    assert read_trace(store, manifest.trace_id) == manifest


def test_with_messages():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": "[data]"}]}]
    store = store_with(
        logged(0), logged(1, messages=parts), logged(2, messages=picture), logged(3, messages=(), prompt="Once")
    )
    manifest = make_trace(store, NewTrace(with_messages=True))
    said = [(m.role, m.content) for entry in lines(store, manifest) for m in entry.messages]
    assert said == [("user", "How many lines?"), ("user", "ab"), ("user", "Once")]
    assert manifest.left_out == {"not_text": 1}


def test_a_stream_without_counts_is_as_long_as_its_characters_elsewhere():
    store = store_with(
        logged(0, "x" * 100, "y" * 30, prompt_tokens=25, output_tokens=10),
        logged(1, "x" * 40, "y" * 6, prompt_tokens=None, output_tokens=None),
    )
    manifest = make_trace(store, NewTrace())
    assert [(e.prompt_tokens, e.output_tokens) for e in lines(store, manifest)] == [(25, 10), (10, 2)]
    assert manifest.estimated == 1


def test_a_request_whose_length_nobody_can_tell_is_left_out_and_counted():
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": "[data]"}]}]
    store = store_with(logged(0), logged(1, messages=picture, prompt_tokens=None))
    assert make_trace(store, NewTrace()).left_out == {"length_unknown": 1}
    unknown = store_with(logged(0, prompt_tokens=None))
    assert make_trace(unknown, NewTrace(with_messages=True)).left_out == {}
    with pytest.raises(BadRequest, match="length_unknown"):
        make_trace(unknown, NewTrace())


def test_copies_for_a_shadow_arrived_once():
    store = store_with(logged(0), logged(0, shadow=True, upstream="next"))
    assert make_trace(store, NewTrace()).requests == 1
    assert make_trace(store, NewTrace(shadows=True)).requests == 2


def test_the_limit_is_said():
    store = store_with(*(logged(n) for n in range(5)))
    assert [make_trace(store, NewTrace(limit=n)).truncated for n in (4, 5)] == [True, False]


def test_nothing_to_replay():
    with pytest.raises(BadRequest, match="no request to replay"):
        make_trace(store_with(logged(0)), NewTrace(model="other"))


def test_a_deleted_request_is_found_in_traces_with_messages_and_the_trace_can_be_deleted():
    store = store_with(logged(0), logged(1))
    with_messages = make_trace(store, NewTrace(with_messages=True))
    make_trace(store, NewTrace())
    delete(store, "req_1")
    assert traces_with(store, "req_1") == [with_messages.trace_id]
    delete_trace(store, with_messages.trace_id)
    assert traces_with(store, "req_1") == []
    with pytest.raises(NotFound):
        read_trace(store, with_messages.trace_id)
