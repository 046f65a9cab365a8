"""How an endpoint is asked for structure: found out by one call or two, never by a fault that may pass."""

import asyncio
import json

import pytest
from scripted import Fails, Reply, Scripted, in_turn

from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_synth.ledger import Ledger
from textmill_synth.llm import FaultKind
from textmill_synth.probe import probe
from textmill_synth.settings import ResponseMode

FITS = json.dumps({"content": "Fern Island", "summary": "The lighthouse was built in 1821."})


def probed(store: MemoryStore, *replies: Reply, mode: ResponseMode = "auto") -> tuple[str, list[object]]:
    """The capability, and with which schema each call was made."""
    llm = Scripted(in_turn(*replies))

    async def work() -> str:
        async with Ledger(store, llm) as ledger:
            return (await probe(ledger, "a-model", mode)).name

    return asyncio.run(work()), [request.schema and "properties" in request.schema for request in llm.requests]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_an_endpoint_that_follows_a_schema(store: MemoryStore) -> None:
    assert probed(store, FITS) == ("json_schema", [True])
    assert probed(store, Fails()) == ("json_schema", []), "the ledger remembers"


@pytest.mark.parametrize("fault", ["llm_bad_request", "llm_server_error"])
def test_an_endpoint_that_takes_no_schema(store: MemoryStore, fault: FaultKind) -> None:
    assert probed(store, Fails(fault), FITS)[0] == "json_object"
    assert probed(MemoryStore(), Fails(fault), Fails(fault))[0] == "text"


@pytest.mark.parametrize("said", ["Fern Island.", '{"content": "the same", "summary": "the same"}', '{"content": "a"}'])
def test_a_model_that_does_not_do_the_task_is_asked_in_text(store: MemoryStore, said: str) -> None:
    assert probed(store, said) == ("text", [True])


@pytest.mark.parametrize("fault", ["llm_timeout", "llm_rate_limited", "llm_connection", "llm_bad_response"])
def test_a_fault_that_may_pass_decides_nothing(store: MemoryStore, fault: FaultKind) -> None:
    with pytest.raises(DependencyDown):
        probed(store, Fails(fault))


@pytest.mark.parametrize(("mode", "name"), [("json", "json_schema"), ("text", "text")])
def test_what_the_settings_say_costs_no_call(store: MemoryStore, mode: ResponseMode, name: str) -> None:
    assert probed(store, FITS, mode=mode) == (name, [])
