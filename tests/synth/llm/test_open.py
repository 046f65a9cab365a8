"""What ``open_llm`` wires: keys, limits and fallback belong to the settings' endpoint; the learnt limit."""

import asyncio

import pytest
from corpora import settings
from fault_llm import FaultLlm, Say, Status
from virtual_endpoint import REQUEST

from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_synth.llm import Completion, open_llm
from textmill_synth.llm.endpoint import Endpoint
from textmill_synth.llm.open import LearntLimit
from textmill_synth.settings import SynthSettings

OTHER = "http://127.0.0.1:1/v1"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def ask(found: SynthSettings, store: MemoryStore, url: str | None = None) -> Completion:
    async def run() -> Completion:
        async with open_llm(found, store, url) as client:
            return await client.complete(REQUEST)

    return asyncio.run(run())


def test_the_fallback_answers_and_says_who_it_is(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always = Say("Hi.")
    found = settings(OTHER, fallback_url=llm.url, fallback_model="n", fallback_api_key="second", llm_api_key="first")
    answer = ask(found, store)
    assert (answer.model, answer.endpoint) == ("n", llm.url)
    assert llm.headers[0]["Authorization"] == "Bearer second"


def test_another_url_gets_neither_key_nor_fallback_nor_limits(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always = Say("Hi.")
    found = settings("http://127.0.0.1:2/v1", fallback_url=llm.url, llm_api_key="s3cret", requests_per_minute=5)
    with pytest.raises(DependencyDown):
        ask(found, store, OTHER)
    assert not llm.requests
    ask(found, store, llm.url)
    assert "Authorization" not in llm.headers[0]
    assert not list(store.list("limits/"))


def test_limits_are_claimed_in_the_store_and_cost_nothing_where_there_are_none(
    llm: FaultLlm, store: MemoryStore
) -> None:
    llm.always = Say("Hi.")
    ask(settings(llm.url), store)
    assert not list(store.list("limits/"))
    ask(settings(llm.url, tokens_per_minute=10_000), store)
    assert len(list(store.list("limits/"))) == 1


def test_a_restarted_job_starts_with_the_limit_that_was_learnt(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always = Say("Hi.")
    ask(settings(llm.url, concurrency=500), store)
    [key] = [info.key for info in store.list("endpoints/")]
    store.put(key, LearntLimit(limit=300.0, threshold=300.0).to_json())

    async def learnt(concurrency: int) -> float:
        async with open_llm(settings(llm.url, concurrency=concurrency), store) as client:
            return client._lanes[0].route.concurrency.limit

    assert asyncio.run(learnt(200)) == 200
    store.put(key, LearntLimit(limit=300.0, threshold=300.0).to_json())
    assert asyncio.run(learnt(500)) == 300
    assert LearntLimit.model_validate_json(store.get(key)) == LearntLimit(limit=300.0, threshold=300.0)


def test_a_guard_sees_every_try(llm: FaultLlm, store: MemoryStore) -> None:
    llm.always, llm.faults = Say("Hi."), {0: Status(500)}
    seen = []

    class Guard:
        def __init__(self, endpoint: Endpoint) -> None:
            self.url, self.endpoint = endpoint.url, endpoint

        async def attempt(self, request: object, deadline_s: float) -> object:
            seen.append(request)
            return await self.endpoint.attempt(request, deadline_s)  # type: ignore[arg-type]

    async def run() -> None:
        async with open_llm(settings(llm.url), store, guard=Guard) as client:  # type: ignore[arg-type]
            await client.complete(REQUEST)

    asyncio.run(run())
    assert seen == [REQUEST, REQUEST]
