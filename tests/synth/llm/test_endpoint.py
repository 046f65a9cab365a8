"""The client over HTTP, against a real server with planted faults."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from fault_llm import Drip, FaultLlm, Garbage, Hang, Say, Stall, Status
from pydantic import SecretStr
from tests.collector import Collector

from textmill import tracing
from textmill.contracts.datasets import Message, ToolCall
from textmill.errors import DependencyDown, JobFailed
from textmill_synth.llm import (
    CallFailed,
    ChatClient,
    ChatRequest,
    Completion,
    Concurrency,
    HttpEndpoint,
    RetryPolicy,
    Route,
)
from textmill_synth.llm import endpoint as endpoint_module

REQUEST = ChatRequest("m", (Message(role="user", content="hello"),), 0.0, 16)


def ask(
    server: FaultLlm,
    count: int = 1,
    deadline_s: float = 60.0,
    concurrency: int = 8,
    observe: Callable[[str], None] = lambda outcome: None,
    key: str = "",
    model: str = "",
) -> list[Completion | BaseException]:
    async def run() -> list[Completion | BaseException]:
        retry = RetryPolicy(max_tries=3, first_delay_s=0.001)
        endpoint = HttpEndpoint(server.url, SecretStr(key) if key else None, model)
        client = ChatClient([Route(endpoint, Concurrency(concurrency))], "m", deadline_s, retry, observe)
        calls = (client.complete(replace(REQUEST, sample=n)) for n in range(count))
        try:
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await client.close()
            endpoint.close()

    return asyncio.run(run())


def test_returns_text_reason_and_tokens(llm: FaultLlm) -> None:
    llm.always = Say("Hi.", "length")
    [answer] = ask(llm)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.finish_reason) == ("Hi.", "length")
    assert answer.prompt_tokens > 0
    assert (answer.model, answer.endpoint) == ("m", llm.url)


def test_sends_the_key_and_no_schema_unless_asked(llm: FaultLlm) -> None:
    llm.always = Say("Hi.")
    ask(llm, key="s3cret")
    assert llm.headers[0]["Authorization"] == "Bearer s3cret"
    assert "response_format" not in llm.requests[0]


@pytest.mark.parametrize("fault", [Status(500), Status(503), Status(429), Status(429, "0"), Garbage(), Hang()])
def test_tries_again_after_a_fault(llm: FaultLlm, fault: object) -> None:
    llm.always = Say("Hi.")
    llm.faults = {0: fault, 1: fault}  # type: ignore[dict-item]
    outcomes: list[str] = []
    assert isinstance(ask(llm, observe=outcomes.append)[0], Completion)
    assert len(llm.requests) == 3
    assert outcomes[-1] == "ok"
    assert "ok" not in outcomes[:-1]


@pytest.mark.parametrize("fault", [Drip(), Stall()])
def test_a_call_that_never_ends_meets_its_deadline(llm: FaultLlm, fault: object) -> None:
    llm.always = Say("Hi.")
    llm.faults = {0: fault}  # type: ignore[dict-item]
    outcomes: list[str] = []
    assert isinstance(ask(llm, deadline_s=1.0, observe=outcomes.append)[0], Completion)
    assert (outcomes[0], outcomes[-1]) == ("llm_timeout", "ok")


def test_the_deadline_does_not_count_waiting_for_a_permit(llm: FaultLlm) -> None:
    llm.always, llm.delay_s = Say("Hi."), 0.5
    answers = ask(llm, count=10, concurrency=1, deadline_s=4.0)
    assert all(isinstance(answer, Completion) for answer in answers)
    assert len(llm.requests) == 10


def test_never_more_at_once_than_allowed(llm: FaultLlm) -> None:
    llm.always, llm.delay_s = Say("Hi."), 0.1
    ask(llm, count=30, concurrency=4)
    assert llm.most_at_once == 4


def test_a_prompt_that_always_times_out_fails_alone(llm: FaultLlm) -> None:
    llm.always, llm.faults = Say("Hi."), dict.fromkeys(range(3), Stall())
    [error] = ask(llm, deadline_s=1.0)
    assert isinstance(error, CallFailed)
    assert error.kind == "llm_timeout"
    assert len(llm.requests) == 3 + 1, "a probe shows that the endpoint is well"


@pytest.mark.parametrize("fault", [Status(503), Status(429), Status(500), Hang()])
def test_an_endpoint_that_serves_nobody_is_down(llm: FaultLlm, fault: object) -> None:
    llm.always = fault  # type: ignore[assignment]
    assert all(isinstance(error, DependencyDown) for error in ask(llm, count=3))


def test_a_closed_port_is_down() -> None:
    with FaultLlm() as gone:
        pass
    assert isinstance(ask(gone)[0], DependencyDown)


def test_a_long_retry_after_gives_the_job_back(llm: FaultLlm) -> None:
    llm.always = Status(429, "3600")
    [error] = ask(llm)
    assert isinstance(error, DependencyDown)
    assert error.retry_after_s == 3600


def test_a_wrong_key_or_model_ends_the_job_and_a_bad_prompt_only_itself(llm: FaultLlm) -> None:
    llm.always = Status(401)
    [error] = ask(llm, key="s3cret")
    assert isinstance(error, JobFailed)
    assert "TEXTMILL_SYNTH_LLM_API_KEY" in str(error)
    assert "s3cret" not in str(error)
    llm.always = Status(400)
    [error] = ask(llm)
    assert isinstance(error, CallFailed)
    assert error.kind == "llm_bad_request"
    assert len(llm.requests) == 2


def test_the_key_of_a_request_depends_on_all_that_changes_its_answer() -> None:
    changed = [
        replace(REQUEST, model="n"),
        replace(REQUEST, temperature=0.1),
        replace(REQUEST, max_tokens=17),
        replace(REQUEST, schema={"type": "object"}),
        replace(REQUEST, sample=1),
        replace(REQUEST, messages=(Message(role="user", content="hello!"),)),
    ]
    assert len({REQUEST.key, *(request.key for request in changed)}) == 7
    assert replace(REQUEST).key == REQUEST.key


def test_a_schema_with_its_properties_in_another_order_is_another_request() -> None:
    """Under guided decoding the answer has them in that order, and writing the evidence first changes it."""
    one, other = {"a": {}, "b": {}}, {"b": {}, "a": {}}
    assert replace(REQUEST, schema={"properties": one}).key != replace(REQUEST, schema={"properties": other}).key


def test_tool_calls_are_sent_as_openai_has_them() -> None:
    asked = Message(role="assistant", content="", tool_calls=(ToolCall(id="1", name="f", arguments="{}"),))
    told = Message(role="tool", content="4", tool_call_id="1")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert replace(REQUEST, messages=(asked, told)).body()["messages"] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]


def test_an_endpoint_with_a_model_of_its_own_asks_that_one_and_says_so(llm: FaultLlm) -> None:
    llm.always = Say("Hi.")
    [answer] = ask(llm, model="other")
    assert llm.requests[0]["model"] == "other"
    assert isinstance(answer, Completion)
    assert answer.model == "other"


def test_an_endless_answer_is_cut_off(llm: FaultLlm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_RESPONSE_BYTES", 1000)
    llm.always = Say("x" * 5000)
    [error] = ask(llm)
    assert isinstance(error, CallFailed)
    assert error.kind == "llm_bad_response"


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "Wed, 99 Nov"])
def test_a_retry_after_that_says_nothing_is_passed_over(llm: FaultLlm, value: str) -> None:
    llm.always, llm.faults = Say("Hi."), {0: Status(429, value)}
    assert isinstance(ask(llm)[0], Completion)


def test_while_tracing_is_on_each_try_is_a_span_that_the_endpoint_can_go_on_from(
    llm: FaultLlm, collector: Collector
) -> None:
    llm.faults = {0: Status(503)}
    llm.always = Say("Hi.")
    with tracing.span("job"):
        ask(llm)
    tracing.stop()
    failed, answered = collector.spans(name="chat m")
    assert [headers["traceparent"].split("-")[2] for headers in llm.headers] == [failed.span_id, answered.span_id]
    assert {failed.parent_id, answered.parent_id} == {collector.one(name="job").span_id}
    assert (failed.failed, failed.attributes["error.type"]) == (True, "llm_server_error")
    assert (answered.failed, answered.attributes["gen_ai.usage.output_tokens"] > 0) == (False, True)
    assert answered.attributes["server.address"] == llm.url
