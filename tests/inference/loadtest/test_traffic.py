import json
import random
from statistics import mean, median
from typing import Any

import pytest
from pydantic import ValidationError

from textmill.contracts.load import (
    Empirical,
    Fixed,
    GivenPrompts,
    Lengths,
    LogNormal,
    MadeUpPrompts,
    Message,
    Normal,
    Target,
    TraceEntry,
    Traffic,
    Uniform,
)
from textmill_inference.loadtest.orders import Gauge
from textmill_inference.loadtest.traffic import Requests, draw, mean_length

TARGET = Target(url="http://127.0.0.1:1", model="m")
WORD_A_TOKEN = Gauge(base=1.0, per_word=1.0)


def body(requests: Requests, entry: TraceEntry | None = None) -> dict[str, Any]:
    value = json.loads(requests.next(entry))
    assert isinstance(value, dict)
    return value


def said(value: dict[str, Any]) -> str:
    return str(value["messages"][0]["content"])


def drawn(lengths: Lengths, times: int = 4_000) -> list[int]:
    one = draw(lengths, random.Random(1))
    return [one() for _ in range(times)]


def test_lengths_follow_their_distributions() -> None:
    assert set(drawn(Fixed(value=7))) == {7}
    assert set(drawn(Uniform(low=3, high=5))) == {3, 4, 5}
    normal = drawn(Normal(mean=100, deviation=20, low=80, high=130))
    assert (min(normal), max(normal)) == (80, 130)
    assert median(drawn(LogNormal(median=200, sigma=0.5))) == pytest.approx(200, rel=0.05)
    assert mean(drawn(Empirical(values=(10, 20), weights=(3, 1)))) == pytest.approx(12.5, rel=0.05)
    assert mean_length(Uniform(low=0, high=100)) == pytest.approx(50, rel=0.1)


def test_no_length_is_zero() -> None:
    assert min(drawn(Uniform(low=0, high=2))) == 1
    assert set(drawn(Fixed(value=0))) == {1}
    assert set(drawn(Empirical(values=(0,)))) == {1}


def test_a_distribution_that_hardly_ever_lies_within_its_bounds_still_ends() -> None:
    assert set(drawn(Normal(mean=500, deviation=0, low=500, high=500), 10)) == {500}
    assert set(drawn(LogNormal(median=10, sigma=0, low=1, high=10), 10)) == {10}


@pytest.mark.parametrize(
    "lengths",
    [
        {"kind": "uniform", "low": 5, "high": 4},
        {"kind": "normal", "mean": 3, "deviation": 1, "low": 5, "high": 9},
        {"kind": "empirical", "values": [1, 2], "weights": [1]},
        {"kind": "empirical", "values": [1], "weights": [0]},
    ],
)
def test_lengths_that_make_no_sense_are_refused(lengths: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MadeUpPrompts.model_validate({"lengths": lengths})


def test_made_up_prompts_have_the_length_in_tokens_and_begin_each_in_another_way() -> None:
    requests = Requests(TARGET, Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=50))), WORD_A_TOKEN)
    texts = [said(body(requests)) for _ in range(500)]
    assert {len(text.split()) for text in texts} == {50}  # 49 words and a number of its own
    assert len({text.split()[0] for text in texts}) == 500
    assert len({text.split(maxsplit=1)[1] for text in texts}) > 490


def test_the_gauge_turns_tokens_into_words() -> None:
    requests = Requests(TARGET, Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=110))), Gauge(base=10, per_word=2.0))
    assert len(said(body(requests)).split()) == 51


def test_prompts_longer_than_the_text_are_made() -> None:
    requests = Requests(TARGET, Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=100_001))), WORD_A_TOKEN)
    assert len(said(body(requests)).split()) == 100_001


def test_a_groups_prefix_is_shared_by_all_workers_and_nothing_else_is() -> None:
    prompts = MadeUpPrompts(lengths=Fixed(value=40), shared_prefix_tokens=20, prefix_groups=2)
    workers = [Requests(TARGET, Traffic(prompts=prompts), WORD_A_TOKEN, worker, 2) for worker in range(2)]
    texts = [said(body(worker)).split() for worker in workers for _ in range(6)]
    assert len({tuple(words[:20]) for words in texts}) == 2
    assert len({tuple(words[20:]) for words in texts}) == 12
    assert {len(words) for words in texts} == {40}


def test_given_prompts_go_round_over_all_workers() -> None:
    prompts = GivenPrompts(conversations=tuple((Message(content=text),) for text in ("a", "b", '"c"\n乾')))
    workers = [Requests(TARGET, Traffic(prompts=prompts), WORD_A_TOKEN, worker, 2) for worker in range(2)]
    assert [said(body(workers[turn % 2])) for turn in range(6)] == ["a", "b", '"c"\n乾'] * 2


def test_completions_get_a_prompt_and_chats_their_turns() -> None:
    talk = (Message(role="system", content="Be brief."), Message(content="Why?"))
    prompts = GivenPrompts(conversations=(talk,))
    chat = body(Requests(TARGET, Traffic(prompts=prompts), WORD_A_TOKEN))
    assert chat["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    plain = body(Requests(TARGET, Traffic(api="completions", prompts=prompts), WORD_A_TOKEN))
    assert plain["prompt"] == "Be brief.\n\nWhy?"
    assert "messages" not in plain


def test_the_body_asks_for_usage_and_the_right_number_of_tokens() -> None:
    traffic = Traffic(
        prompts=MadeUpPrompts(lengths=Fixed(value=5)), output=Fixed(value=9), exact_output=True, sampling={"top_p": 0.5}
    )
    value = body(Requests(TARGET, traffic, WORD_A_TOKEN))
    assert value["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (value["max_tokens"], value["min_tokens"], value["ignore_eos"], value["top_p"]) == (9, 9, True, 0.5)
    assert "temperature" not in value
    plain = body(Requests(TARGET, traffic.model_copy(update={"stream": False, "exact_output": False}), WORD_A_TOKEN))
    assert not plain.keys() & {"stream", "stream_options", "ignore_eos"}
    careful = body(Requests(TARGET, traffic, WORD_A_TOKEN, continuous=False))
    assert careful["stream_options"] == {"include_usage": True}


def test_a_traces_entry_comes_before_the_traffic() -> None:
    requests = Requests(TARGET, Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=5))), WORD_A_TOKEN)
    recorded = body(requests, TraceEntry(at_s=0, messages=(Message(content="Then?"),), output_tokens=3))
    assert (said(recorded), recorded["max_tokens"], recorded["ignore_eos"]) == ("Then?", 3, True)
    assert len(said(body(requests, TraceEntry(at_s=0, prompt_tokens=30))).split()) == 30


def test_sampling_cant_set_what_the_load_test_sets() -> None:
    with pytest.raises(ValidationError, match="sampling can't set max_tokens, stream"):
        Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=5)), sampling={"stream": False, "max_tokens": 3})
