import json

import pytest

from textmill.contracts.loadtest import ErrorClass, Phase
from textmill_inference.loadtest.answer import MOST_EVENT_BYTES, Answer, TokenSink, error_of
from textmill_inference.loadtest.clocks import Exchange

DONE = b"data: [DONE]\n\n"


class Heard:
    """What an answer tells of its tokens."""

    def __init__(self, stream: bool = True) -> None:
        self.first: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.exchange = Exchange(0, Phase.MEASURED, 0.0, b"")
        sink = TokenSink(self.first.append, lambda us, times: self.gaps.append((us, times)))
        self.answer = Answer(self.exchange, stream, sink)
        self.answer.head(200, "text/event-stream" if stream else "application/json")

    def feed(self, *pieces: tuple[float, bytes]) -> "Heard":
        for now, data in pieces:
            self.answer.feed(data, now)
        self.answer.end()
        return self


def chunk(text: str = " word", tokens: int | None = None, choices: bool = True, **more: object) -> bytes:
    value: dict[str, object] = {"choices": [{"index": 0, "delta": {"content": text}}] if choices else [], **more}
    if tokens is not None:
        value["usage"] = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def test_tokens_are_counted_by_usage_and_their_gaps_shared_out() -> None:
    heard = Heard().feed(
        (1.0, chunk("", 0)), (2.0, chunk(tokens=1)), (2.1, chunk("", 1)), (2.3, chunk(tokens=4)),
        (2.4, chunk(tokens=5)), (2.4, chunk(tokens=5, choices=False)), (2.4, DONE),
    )  # fmt: skip
    exchange = heard.exchange
    assert exchange.error is None
    assert (exchange.first_token, exchange.last_token, exchange.tokens, exchange.source) == (2.0, 2.4, 5, "usage")
    assert heard.first == [1]
    assert [(round(us, -1), times) for us, times in heard.gaps] == [(100_000, 3), (100_000, 1)]
    heard.answer.read_usage()
    assert exchange.prompt_tokens == 5


def test_events_may_be_cut_anywhere() -> None:
    whole = b"".join([chunk("", 0), chunk(tokens=1), chunk(tokens=2), chunk(tokens=3), DONE])
    for cut in range(1, len(whole)):
        heard = Heard().feed((1.0, whole[:cut]), (2.0, whole[cut:]))
        assert (heard.exchange.error, heard.exchange.tokens, heard.answer.complete) == (None, 3, True)


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_comments_other_fields_and_line_ends_of_both_kinds_are_read(end: str) -> None:
    lines = [
        ": keep-alive",
        "",
        "event: message",
        'data: {"choices":[{"delta":{"content":"x"}}]}',
        "",
        "data: [DONE]",
        "",
    ]
    heard = Heard().feed((1.0, (end.join(lines) + end).encode()))
    assert (heard.exchange.error, heard.exchange.tokens) == (None, 1)


def test_an_event_of_several_data_lines_is_one() -> None:
    heard = Heard().feed((1.0, b'data: {"choices":\ndata: [{"delta":{"content":"x"}}]}\n\n' + DONE))
    assert heard.exchange.error is None


def test_without_usage_chunks_with_text_are_counted_and_marked() -> None:
    heard = Heard().feed((1.0, chunk("")), (2.0, chunk()), (2.5, chunk()), (3.0, DONE))
    assert (heard.exchange.tokens, heard.exchange.source, heard.exchange.continuous) == (2, "chunks", False)
    assert heard.gaps == [(500_000, 1)]


def test_usage_at_the_end_alone_corrects_the_count_but_not_the_gaps() -> None:
    heard = Heard().feed((2.0, chunk()), (2.5, chunk()), (3.0, chunk(tokens=7, choices=False)), (3.0, DONE))
    assert (heard.exchange.tokens, heard.exchange.source, heard.exchange.continuous) == (7, "usage", False)
    assert heard.first == [1, 5]
    assert heard.exchange.last_token == 2.5


def test_a_count_inside_the_text_isnt_taken_for_one() -> None:
    text = 'the "completion_tokens":99 of it'
    heard = Heard().feed((1.0, chunk("", 0)), (2.0, chunk(text, 1)), (3.0, chunk(text, 2)), (3.0, DONE))
    assert heard.exchange.tokens == 2


@pytest.mark.parametrize(
    "value",
    [{"delta": {"reasoning_content": "hm"}}, {"delta": {"tool_calls": [{"index": 0}]}}, {"text": "x"}],
    ids=["reasoning", "tool call", "completion"],
)
def test_other_output_is_output(value: dict[str, object]) -> None:
    heard = Heard().feed((1.0, b"data: " + json.dumps({"choices": [value]}).encode() + b"\n\n" + DONE))
    assert heard.exchange.tokens == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (chunk(tokens=1), ErrorClass.BROKEN_STREAM),
        (b"", ErrorClass.BROKEN_STREAM),
        (b'data: {"error":{"message":"out of memory"}}\n\n' + DONE, ErrorClass.BROKEN_STREAM),
        (DONE, ErrorClass.WRONG_CONTENT),
        (chunk("", 0) + DONE, ErrorClass.WRONG_CONTENT),
        (b"data: <html>\n\n" + DONE, ErrorClass.WRONG_CONTENT),
        (b"data: [1,2]\n\n" + DONE, ErrorClass.WRONG_CONTENT),
        (b'data: {"object":"x"}\n\n' + DONE, ErrorClass.WRONG_CONTENT),
        (b"data: " + b"x" * (MOST_EVENT_BYTES + 1), ErrorClass.WRONG_CONTENT),
    ],
)  # fmt: skip
def test_what_isnt_a_whole_stream_is_an_error(body: bytes, error: ErrorClass) -> None:
    heard = Heard().feed((1.0, body))
    assert heard.exchange.error is error
    assert heard.exchange.detail


def test_an_error_in_mid_stream_is_seen_on_the_fast_path() -> None:
    heard = Heard().feed(
        (1.0, chunk(tokens=1)), (2.0, chunk(tokens=2)), (3.0, b'data: {"error":{"code":500}}\n\n'), (3.0, DONE)
    )
    assert heard.exchange.error is ErrorClass.BROKEN_STREAM


def test_a_last_line_without_its_empty_line_ends_the_stream() -> None:
    assert Heard().feed((1.0, chunk(tokens=1) + b"data: [DONE]\n")).exchange.error is None


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, "429"), (404, "4xx"), (503, "5xx"), (302, "wrong_content"), (204, "wrong_content")],
)
def test_statuses_have_their_classes(status: int, error: str) -> None:
    assert error_of(status) == error
    heard = Heard()
    heard.answer.head(status, "application/json")
    heard.feed((1.0, b'{"error":"no"}'))
    assert (heard.exchange.error, heard.exchange.detail, heard.exchange.status) == (error, '{"error":"no"}', status)


def test_a_200_of_another_type_is_wrong_content() -> None:
    heard = Heard()
    heard.answer.head(200, "text/html")
    assert heard.feed((1.0, b"<html>" * 10_000)).exchange.error is ErrorClass.WRONG_CONTENT
    assert len(heard.exchange.detail) <= 500


def test_a_whole_body_is_read_with_its_usage() -> None:
    body = json.dumps({"choices": [{"text": "x"}], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}).encode()
    heard = Heard(stream=False).feed((1.0, body[:9]), (1.0, body[9:]))
    heard.answer.read_usage()
    assert (heard.exchange.error, heard.exchange.tokens, heard.exchange.prompt_tokens, heard.first) == (None, 8, 3, [8])


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices":[]}', b"[", b"[]"])
def test_a_whole_body_without_an_answer_is_wrong_content(body: bytes) -> None:
    assert Heard(stream=False).feed((1.0, body)).exchange.error is ErrorClass.WRONG_CONTENT


def test_the_targets_own_times_are_read() -> None:
    metrics = {"queue_time_ms": 1.5, "time_to_first_token_ms": 9, "tokens_per_second": 3, "mean_itl_ms": None}
    heard = Heard().feed((1.0, chunk(tokens=1)), (2.0, chunk(tokens=1, choices=False, metrics=metrics)), (2.0, DONE))
    assert heard.answer.server_times() == {"queue_time_ms": 1.5, "time_to_first_token_ms": 9.0}
