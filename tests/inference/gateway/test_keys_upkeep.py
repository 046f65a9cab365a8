"""The upkeep's rounds, in virtual time."""

import asyncio
import logging

import pytest
from tests.synth.virtual_time import run

from textmill.contracts.keys import KeyLimits, NewKey
from textmill.store import MemoryStore
from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.engine_watch import EngineLoad, EngineWatch
from textmill_inference.gateway.key_watch import KeyWatch
from textmill_inference.gateway.keys import OPEN, KeyRing
from textmill_inference.gateway.keystore import KeyStore
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.gateway.upkeep import Upkeep
from textmill_inference.gateway.usage_exchange import UsageExchange


def now() -> float:
    return asyncio.get_running_loop().time()


def upkeep(store: MemoryStore, admission: Admission, engines: EngineWatch | None = None) -> Upkeep:
    watch = KeyWatch(KeyStore(store), KeyRing(required=True), clock=now)
    return Upkeep(watch, UsageExchange(store, admission, clock=now), admission, engines, every_s=2.0)


def test_keys_are_known_before_the_first_request_and_followed_until_the_end() -> None:
    async def work() -> list[bool]:
        store = MemoryStore()
        first = KeyStore(store).create(NewKey(name="first")).key
        kept = upkeep(store, Admission(clock=now))
        found = []
        async with kept.running():
            found.append(known(kept, first))
            second = KeyStore(store).create(NewKey(name="second")).key
            found.append(known(kept, second))
            await asyncio.sleep(2.5)
            found.append(known(kept, second))
        assert len(asyncio.all_tasks()) == 1
        return found

    assert run(work()) == [True, False, True]


def known(kept: Upkeep, key: str) -> bool:
    try:
        kept.watch.ring.identify([(b"authorization", b"Bearer " + key.encode())])
    except OpenAIError:
        return False
    return True


def test_a_round_that_fails_is_logged_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Admission):
        rounds = 0

        def publish(self) -> None:
            self.rounds += 1
            raise ZeroDivisionError

    async def work() -> int:
        admission = Failing(clock=now)
        async with upkeep(MemoryStore(), admission).running():
            await asyncio.sleep(9)
        return admission.rounds

    with caplog.at_level(logging.ERROR):
        assert run(work()) == 6  # at the begin, at 2, 4, 6 and 8 s, at the end
    assert [record.getMessage() for record in caplog.records] == ["a round of the upkeep failed"] * 6


def test_quotas_are_exchanged_only_where_a_key_has_one() -> None:
    async def work(limits: KeyLimits) -> int:
        store = MemoryStore()
        made = KeyStore(store).create(NewKey(name="x", limits=limits))
        admission = Admission(clock=now)
        kept = upkeep(store, admission)
        async with kept.running():
            caller = kept.watch.ring.identify([(b"authorization", b"Bearer " + made.key.encode())])
            assert admission.try_enter(caller, "m", 1) is not None
        return len(list(store.list("keys/usage/")))

    assert run(work(KeyLimits())) == 0
    assert run(work(KeyLimits(concurrent=1))) == 1


def test_busy_engines_are_asked_each_second() -> None:
    async def work() -> int:
        admission, asked = Admission(clock=now), 0

        async def ask(url: str) -> EngineLoad:
            nonlocal asked
            asked += 1
            return EngineLoad(1, 0)

        for _ in range(2):
            admission.try_enter(OPEN, "m", 1)
        async with upkeep(MemoryStore(), admission, EngineWatch(admission, lambda: {"m": ["u"]}, ask)).running():
            await asyncio.sleep(10.5)
        return asked

    assert run(work()) == 10
