"""The null server and the calibration against it. How fast this machine is decides nothing here."""

import json
import socket
import urllib.request
from collections.abc import Callable

import pytest
from tests.inference.loadtest.scripted import Scripted, answer

from textmill.contracts.load import (
    Bursts,
    ClosedLoop,
    ConstantRate,
    Expectation,
    Fixed,
    Load,
    Poisson,
    Ramp,
    Stage,
    Target,
    Trace,
    TraceEntry,
)
from textmill.contracts.loadtest import Clock
from textmill_inference.loadtest.address import endpoint, first_that_accepts
from textmill_inference.loadtest.calibration import calibrate, load_of_one, peak_rate, shortened
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.look import look
from textmill_inference.loadtest.truth import read_truth

MakeStage = Callable[..., Stage]
USAGE = '"usage":{"prompt_tokens":%d,"completion_tokens":1}'


def post(url: str, body: dict[str, object]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        data = response.read()
    assert isinstance(data, bytes)
    return data


def test_the_null_server_streams_as_an_openai_server_does(null_url: str) -> None:
    body = {"stream": True, "max_tokens": 3, "messages": [{"role": "user", "content": "a b c"}]}
    *events, last, done, rest = post(f"{null_url}/v1/chat/completions", body).split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", " word", " word", " word"]
    assert json.loads(last.removeprefix(b"data: "))["choices"] == []
    assert (done, rest) == (b"data: [DONE]", b"")


def test_the_null_server_answers_whole_ones_too(null_url: str) -> None:
    chat = json.loads(post(f"{null_url}/v1/chat/completions", {"max_completion_tokens": 2, "messages": []}))
    assert chat["choices"][0]["message"]["content"] == " word word"
    plain = json.loads(post(f"{null_url}/v1/completions", {"max_tokens": 2, "prompt": "x"}))
    assert (plain["choices"][0]["text"], plain["usage"]["completion_tokens"]) == (" word word", 2)
    with urllib.request.urlopen(f"{null_url}/v1/models", timeout=60) as response:
        assert json.load(response)["data"][0]["id"] == "null"


def test_the_null_server_keeps_the_truth(own_null_url: str) -> None:
    read_truth(own_null_url, reset=True)
    post(f"{own_null_url}/v1/completions", {"stream": True, "max_tokens": 4, "prompt": "x"})
    truth = read_truth(own_null_url)
    assert (truth.requests, truth.tokens) == (1, 4)
    assert (Histogram(truth.ttft).percentile(50) or 0) >= 20_000 * 0.999
    assert Histogram(truth.inter_token).samples == 3
    assert (Histogram(truth.e2e).percentile(50) or 0) >= 35_000 * 0.999


def test_the_error_budget_is_found_at_the_planned_pace(make_stage: MakeStage) -> None:
    stage = make_stage("http://127.0.0.1:1", ClosedLoop(concurrency=20), tokens=5)
    stage = stage.model_copy(update={"expects": Expectation(ttft_ms=20, itl_ms=5)})
    found = calibrate(stage, 2, 0.6, "before", 0.0, (None, None), lambda: False)
    assert found is not None
    assert (found.errors, found.concurrency) == (0, 10)  # a worker's half
    # 15 times 40 ms fit into the 0.6 s, and each client may end one more that began before.
    assert 0 < found.requests_per_s <= 10 * 16 / 0.6
    assert found.chunks_per_s > found.requests_per_s
    assert found.cpu_us_per_request > found.cpu_us_per_chunk > 0


@pytest.mark.parametrize(
    ("load", "played"),
    [
        (ClosedLoop(concurrency=5), ClosedLoop(concurrency=3, ramp_s=1.0)),
        (ConstantRate(rate_per_s=40), ConstantRate(rate_per_s=20)),
        (Poisson(rate_per_s=40, seed=3), Poisson(rate_per_s=20, seed=3)),
        (Bursts(size=8, period_s=9, rate_per_s=4), Bursts(size=4, period_s=1, rate_per_s=2)),
        (Ramp(from_per_s=60, to_per_s=40, seconds=60), ConstantRate(rate_per_s=30)),
        (Trace(key="t"), ConstantRate(rate_per_s=35)),
    ],
    ids=lambda load: load.kind,
)
def test_a_worker_is_calibrated_with_its_part_at_its_busiest(load: Load, played: Load) -> None:
    assert load_of_one(load, workers=2, peak=70.0) == played


def test_an_open_loop_is_calibrated_too(make_stage: MakeStage) -> None:
    stage = make_stage("http://127.0.0.1:1", Trace(key="t"), tokens=2)
    found = calibrate(stage, 2, 0.4, "before", 40.0, (None, None), lambda: False)
    assert found is not None
    assert (found.errors, found.requests_per_s > 0) == (0, True)


@pytest.mark.parametrize(("ttft_ms", "itl_ms", "tokens"), [(1_300, 70, 32), (100, 50, 64), (50, 20, 10), (500, 0, 8)])
def test_answers_are_cut_for_it_and_chunks_a_second_are_not(
    make_stage: MakeStage, ttft_ms: float, itl_ms: float, tokens: int
) -> None:
    """With a fixed number of clients the tokens of an answer over its length are what each of them brings."""
    expects = Expectation(ttft_ms=ttft_ms, itl_ms=itl_ms)
    stage = make_stage("http://127.0.0.1:1", tokens=tokens, expects=expects)
    played = shortened(stage)
    assert isinstance(played.traffic.output, Fixed)
    cut = played.traffic.output.value
    assert cut == min(tokens, 1 + int(1_000 / itl_ms)) if itl_ms else cut == tokens
    before = tokens / (ttft_ms + tokens * itl_ms)
    assert cut / (played.expects.ttft_ms + cut * played.expects.itl_ms) == pytest.approx(before)


def test_a_calibration_can_be_stopped(make_stage: MakeStage) -> None:
    assert calibrate(make_stage("http://x"), 1, 60.0, "before", 0.0, (None, None), lambda: True) is None


def test_a_traces_pace_is_that_of_its_busiest_ten_seconds() -> None:
    entries = [TraceEntry(at_s=at) for at in (0, 1, 2, 25, 26, 27, 28, 29)]
    assert peak_rate(entries, speed=1.0) == 0.5
    assert peak_rate(entries, speed=10.0) == 0.8


def test_a_target_that_is_faster_than_expected_is_calibrated_for_anew(null_url: str, make_stage: MakeStage) -> None:
    stage = make_stage(null_url, ClosedLoop(concurrency=4, ramp_s=0), expects=Expectation(ttft_ms=400, itl_ms=50))
    measured = Generator(workers=1, calibrate_s=0.5).run(stage, lambda second: None, lambda: False)
    before, after = measured.calibrations
    assert (before.when, after.when) == ("before", "after")
    assert after.requests_per_s > before.requests_per_s
    assert measured.latencies[Clock.TTFT_SENT].min_ms < 400


def test_the_look_finds_how_many_tokens_words_come_to(scripted: Scripted, make_stage: MakeStage) -> None:
    for tokens in (40, 290):  # 2.5 a word, and 20 around them
        event = ('data: {"choices":[],%s}\n\ndata: [DONE]\n\n' % (USAGE % tokens)).encode()
        scripted.answers = [*scripted.answers, answer(event)]
    scripted.answers = scripted.answers[1:]
    stage = make_stage(scripted.url)
    seen = look(stage, endpoint(stage.target), "k")
    assert (seen.gauge.per_word, seen.gauge.base, seen.continuous, seen.note) == (2.5, 20.0, True, "")
    assert b"Authorization: Bearer k" in scripted.requests[0]


def test_a_target_that_refuses_usage_in_chunks_isnt_asked_for_it(scripted: Scripted, make_stage: MakeStage) -> None:
    refusal = answer(b'{"error":{"message":"unknown field"}}', "400 Bad Request", "application/json")
    scripted.answers = [refusal, answer(b"data: [DONE]\n\n"), answer(b"data: [DONE]\n\n")]
    stage = make_stage(scripted.url)
    seen = look(stage, endpoint(stage.target), "")
    assert not seen.continuous
    assert "doesn't count prompt tokens" in seen.note
    assert [b"continuous_usage_stats" in request for request in scripted.requests] == [True, False, False]


def test_of_a_names_addresses_the_one_that_accepts_is_dialled(scripted: Scripted) -> None:
    assert first_that_accepts(["127.0.0.2", "127.0.0.1"], scripted.port) == "127.0.0.1"
    assert first_that_accepts(["127.0.0.2", "127.0.0.3"], scripted.port) == "127.0.0.2"


def test_a_target_may_be_given_by_its_root_or_its_base() -> None:
    for path in ("", "/", "/v1", "/v1/"):
        found = endpoint(Target(url=f"http://127.0.0.1:81{path}", model="m"))
        assert (found.host, found.port, found.path("chat")) == ("127.0.0.1", 81, "/v1/chat/completions")
    below = endpoint(Target(url="https://127.0.0.1/llm/v1", model="m"))
    assert (below.port, below.tls, below.path("completions")) == (443, True, "/llm/v1/completions")


def test_a_target_that_doesnt_answer_the_look_is_measured_all_the_same(make_stage: MakeStage) -> None:
    stage = make_stage("http://127.0.0.1:1")
    seen = look(stage, endpoint(stage.target), "")
    assert "unanswered" in seen.note
    assert seen.gauge.per_word == 1.0


def test_a_look_at_a_target_that_hangs_can_be_cancelled(make_stage: MakeStage) -> None:
    """The job's own time to stop is shorter than the look may take."""
    asked = iter([False, False, True])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stage = make_stage(f"http://127.0.0.1:{silent.getsockname()[1]}")
        seen = look(stage, endpoint(stage.target), "", lambda: next(asked))
    assert "cancelled" in seen.note
    assert list(asked) == []
