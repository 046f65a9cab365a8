"""The fault server over real HTTP: what it says, each fault it plants, its limits, its counts."""

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
from pydantic import BaseModel, Field

from textmill.errors import BadRequest
from textmill_cli.fault_llm.limits import Limits
from textmill_cli.fault_llm.plan import Plan, Rates
from textmill_cli.fault_llm.replies import RATE_LIMITED, Decision, Received, Status
from textmill_cli.fault_llm.server import FaultServer

ENGLISH = "Text: The mill was built in 1821. It grinds rye.\n\nQuestion: Who grinds rye?\n\nAnswer briefly."
CHINESE = "文字：磨坊建于1821年。它磨黑麦。\n\n问题：它磨什么？\n\n请用一句话回答。"


class Pair(BaseModel):
    question: str
    answer: str
    evidence: str


class Pairs(BaseModel):
    title: str
    pairs: list[Pair] = Field(min_length=4)
    sure: bool
    note: str | None


@asynccontextmanager
async def served(plan: Plan, limits: Limits | None = None) -> AsyncIterator[str]:
    server = FaultServer(plan, limits)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


def request(prompt: str, **more: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}


def asking(name: str, schema: dict[str, object]) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


async def post(url: str, body: object, timeout_s: float = 60.0) -> tuple[int, dict[str, str], bytes]:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        return response.status, dict(response.headers), await response.read()


async def stats(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/stats") as response:
        found: dict[str, Any] = await response.json()
        return found


def once(plan: Plan, body: object) -> tuple[int, dict[str, str], bytes, dict[str, Any]]:
    async def run() -> tuple[int, dict[str, str], bytes, dict[str, Any]]:
        async with served(plan) as url:
            return *await post(url, body), await stats(url)

    return asyncio.run(run())


def text_of(data: bytes) -> str:
    text: str = json.loads(data)["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(("prompt", "answer"), [(ENGLISH, "It grinds rye."), (CHINESE, "它磨黑麦。")])
def test_the_official_client_gets_a_sentence_of_the_passage(prompt: str, answer: str) -> None:
    async def run() -> None:
        async with served(Plan()) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
            whole = await client.chat.completions.create(model="m", messages=messages)
            assert whole.choices[0].message.content == answer
            assert whole.usage is not None
            assert whole.usage.total_tokens > len(answer) / 5
            stream = await client.chat.completions.create(
                model="m", messages=messages, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
            assert chunks[-1].usage == whole.usage
            assert [model.id for model in (await client.models.list()).data] == ["fault-llm"]

    asyncio.run(run())


@pytest.mark.parametrize("prompt", [ENGLISH, CHINESE])
def test_a_schema_is_filled_from_the_passage(prompt: str) -> None:
    form = asking("pairs", Pairs.model_json_schema())
    *_, data, _ = once(Plan(), request(prompt, response_format=form))
    filled = Pairs.model_validate_json(text_of(data))
    assert len(filled.pairs) == 4
    assert {pair.evidence for pair in filled.pairs} == {pair.answer for pair in filled.pairs}
    assert all(pair.evidence in prompt and pair.question[-1] in "?？" for pair in filled.pairs)
    assert len(filled.title) < len(filled.pairs[0].answer)


def test_a_prompt_with_an_example_of_pairs_gets_pairs() -> None:
    prompt = f'Reply with JSON only: [{{"question": "...", "answer": "..."}}]\n\n{ENGLISH}'
    *_, data, _ = once(Plan(), request(prompt))
    assert {"The mill was built in 1821.", "It grinds rye."} == {pair["answer"] for pair in json.loads(text_of(data))}


def test_faults_with_a_status() -> None:
    for share, retry_after in (("status_429", None), ("status_429_retry_after", "1"), ("status_500", None)):
        status, headers, data, counted = once(Plan(Rates(**{share: 1.0})), request(ENGLISH))
        assert (status, headers.get("Retry-After")) == (int(share[7:10]), retry_after)
        assert json.loads(data)["error"]["type"] == "planted_fault"
        assert counted["outcomes"] == {share: 1}
        assert counted["answered"] == {}


def test_faults_in_the_answer() -> None:
    *_, data, counted = once(Plan(Rates(truncate=1.0)), request(ENGLISH))
    assert json.loads(data)["choices"][0]["finish_reason"] == "length"
    assert "It grinds rye.".startswith(text_of(data))
    assert text_of(data) != "It grinds rye."
    assert counted["outcomes"] == {"truncate": 1}
    assert "sorry" in text_of(once(Plan(Rates(refuse=1.0)), request(ENGLISH))[2])
    assert "抱歉" in text_of(once(Plan(Rates(refuse=1.0)), request(CHINESE))[2])


def test_garbage_is_in_the_body_or_in_the_json_answer() -> None:
    form = asking("a", {"type": "object", "properties": {"answer": {"type": "string"}}})
    seen: Counter[str] = Counter()
    for n in range(12):
        status, _, data, counted = once(Plan(Rates(garbage=1.0)), request(f"{n} {ENGLISH}", response_format=form))
        [outcome] = counted["outcomes"]
        seen[outcome] += 1
        assert status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(data if outcome == "garbage_body" else text_of(data))
    assert set(seen) == {"garbage_body", "garbage_content"}


def test_a_stalled_request_is_seen_to_be_given_up() -> None:
    async def run() -> dict[str, Any]:
        async with served(Plan(Rates(stall=1.0))) as url:
            asking = asyncio.create_task(post(url, request(ENGLISH)))
            while not (await stats(url))["open"]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            asking.cancel()
            while (found := await stats(url))["open"]:
                await asyncio.sleep(0.01)
            return found

    found = asyncio.run(run())
    assert (found["outcomes"], found["abandoned"], found["answered"]) == ({"stall": 1}, 1, {})
    assert found["longest_open_s"] >= 0.199


def test_a_drip_sends_bytes_and_never_ends() -> None:
    async def run() -> bytes:
        got = b""
        async with (
            asyncio.timeout(60),
            served(Plan(Rates(drip=1.0))) as url,
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=request("x")) as answer,
        ):
            async for data in answer.content.iter_any():
                got += data
                if len(got) >= 2:
                    break
            assert (await stats(url))["open"] == 1
        return got

    assert set(asyncio.run(run())) == set(b" ")


def decisions(plan: Plan, calls: Iterable[int]) -> dict[int, str]:
    return {n: plan(Received(0, f"call-{n}", 0, request(ENGLISH), {})).outcome for n in calls}


def test_faults_depend_on_the_seed_the_call_and_its_try_and_not_on_the_order() -> None:
    rates = Rates(status_429=0.2, status_500=0.2, truncate=0.2)
    first = decisions(Plan(rates, seed=1), range(200))
    assert first == decisions(Plan(rates, seed=1), reversed(range(200)))
    assert first != decisions(Plan(rates, seed=2), range(200))
    tries = [Plan(rates)(Received(0, "call", n, request(ENGLISH), {})).outcome for n in range(50)]
    assert len(set(tries)) == 4


def test_each_fault_has_its_share() -> None:
    rates = Rates(0.1, 0.1, 0.1, stall=0.2, drip=0.05, truncate=0.05, garbage=0.1, refuse=0.05)
    seen = Counter(decisions(Plan(rates), range(8000)).values())
    for name, share in (("status_429", 0.1), ("status_500", 0.1), ("stall", 0.2), ("drip", 0.05), ("answered", 0.25)):
        assert seen[name] / 8000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("wrong", [{"stall": 0.6, "drip": 0.6}, {"stall": -0.1}])
def test_rates_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match="rates"):
        Rates(**wrong)


def test_latency_and_jitter() -> None:
    after = [Plan(Rates(), 0, 1.0, 0.25)(Received(0, str(n), 0, request("x"), {})).after_s for n in range(400)]
    assert 0.75 <= min(after) < 0.77
    assert 1.23 < max(after) <= 1.25
    found = once(Plan(latency_s=0.2), request(ENGLISH))[3]
    assert found["longest_open_s"] >= found["mean_open_s"] - 0.001 >= 0.199
    assert Plan(Rates(status_429=1.0), latency_s=9.0)(Received(0, "a", 0, request("x"), {})).after_s == 0


def test_no_more_a_minute_than_the_limit() -> None:
    limits = Limits(per_minute=3)
    assert [limits.admit(now, 1) for now in (0.0, 10.0, 20.0)] == [None] * 3
    assert limits.admit(30.0, 1) == Decision(Status(429, "30", RATE_LIMITED), "over_rpm")
    assert limits.admit(60.0, 1) is None
    assert limits.admit(60.5, 1) == Decision(Status(429, "10", RATE_LIMITED), "over_rpm")


def test_limits_answer_429_with_retry_after() -> None:
    async def run(limits: Limits) -> tuple[list[tuple[int, str | None]], dict[str, Any]]:
        async with served(Plan(latency_s=1.5), limits) as url:
            replies = await asyncio.gather(*(post(url, request(f"{n}")) for n in range(5)))
            return [(status, headers.get("Retry-After")) for status, headers, _ in replies], await stats(url)

    replies, found = asyncio.run(run(Limits(per_minute=2)))
    assert sorted(status for status, _ in replies) == [200, 200, 429, 429, 429]
    # Until the first is a minute old, which it may be by a while on a busy machine.
    assert all(30 <= int(wait or 0) <= 60 for status, wait in replies if status == 429)
    assert found["outcomes"] == {"answered": 2, "over_rpm": 3}
    replies, found = asyncio.run(run(Limits(at_once=2)))
    assert found["outcomes"] == {"answered": 2, "over_concurrency": 3}
    assert {wait for status, wait in replies if status == 429} == {"1"}


def test_stats_count_tries_by_call_and_the_most_at_once() -> None:
    async def run() -> dict[str, Any]:
        async with served(Plan(latency_s=1.5)) as url:
            await asyncio.gather(*(post(url, request(prompt)) for prompt in ("a", "b", "c", "a")))
            await post(url, request("a"))
            return await stats(url)

    found = asyncio.run(run())
    assert sorted(found["tries"].values()) == [1, 1, 3]
    assert found["tries"] == found["answered"]
    assert (found["requests"], found["most_at_once"], found["most_in_a_minute"]) == (5, 4, 5)
    assert (found["open"], found["abandoned"], sum(found["per_minute"])) == (0, 0, 5)


def test_stats_can_begin_anew_while_a_request_is_open() -> None:
    async def run() -> dict[str, Any]:
        async with served(Plan(latency_s=0.2)) as url, aiohttp.ClientSession() as session:
            early = asyncio.create_task(post(url, request("early")))
            while not (await stats(url))["open"]:
                await asyncio.sleep(0.01)
            async with session.delete(f"{url}/stats") as response:
                assert response.status == 204
            await post(url, request("late"))
            assert (await early)[0] == 200
            return await stats(url)

    found = asyncio.run(run())
    assert (found["requests"], found["outcomes"], found["open"]) == (1, {"answered": 1}, 0)
    assert found["busy_s"] >= 0.2


@pytest.mark.parametrize("body", [[], {"model": "m"}, {"messages": []}, {"messages": [{"content": 7}]}])
def test_what_is_no_chat_request_gets_400(body: object) -> None:
    status, _, data, counted = once(Plan(), body)
    assert status == 400
    assert json.loads(data)["error"]["message"]
    assert counted["outcomes"] == {"status_400": 1}


@pytest.mark.parametrize("streamed", [False, True])
def test_plain_completions_are_answered_as_engines_answer_them(streamed: bool) -> None:
    body = {"model": "m", "prompt": ENGLISH, "stream": streamed, "stream_options": {"include_usage": True}}

    async def run() -> tuple[int, bytes]:
        async with (
            served(Plan()) as url,
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/completions", json=body) as response,
        ):
            return response.status, await response.read()

    status, data = asyncio.run(run())
    assert status == 200
    lines = [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")] or [json.loads(data)]
    text = "".join(line["choices"][0]["text"] for line in lines if line["choices"])
    assert text
    assert text in ENGLISH
    assert lines[-1]["usage"]["completion_tokens"] > 0


def test_the_command_serves_and_says_where() -> None:
    command = [sys.executable, "-m", "textmill_cli.main", "fault-llm", "--port", "0", "--rate-500", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1].removesuffix("/v1")
            with urllib.request.urlopen(f"{url}/healthz", timeout=60) as response:
                assert json.load(response) == {"status": "ok"}
            assert asyncio.run(post(url, request(ENGLISH)))[0] == 500
        finally:
            process.terminate()
