"""Who a request is from: the ring alone, with keys as the store would give them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.contracts.base import new_id
from textmill.contracts.keys import ApiKey, KeyLimits, NewKey
from textmill_inference.gateway.keys import OPEN, KeyRing
from textmill_inference.gateway.keystore import new_secret, sha256_of
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.settings import AccessSettings

GOOD = new_secret()


def stored(secret: str, **fields: Any) -> ApiKey:
    given = {"name": "app", "group": "team", **fields}
    return ApiKey(key_id=new_id("key"), sha256=sha256_of(secret), hint=secret[:8], **given)


def ring(*keys: ApiKey, now: float = 1_000.0, required: bool = True) -> KeyRing:
    made = KeyRing(required=required, clock=lambda: now)
    made.replace(keys)
    return made


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())]


def refused(made: KeyRing, headers: list[tuple[bytes, bytes]]) -> tuple[int, str | None]:
    with pytest.raises(OpenAIError) as caught:
        made.identify(headers)
    return caught.value.status, caught.value.code


def test_a_known_key_tells_whose_it_is_and_what_it_may() -> None:
    key = stored(GOOD, models=("law-*", "base"), limits=KeyLimits(concurrent=3), weight=2.0)
    caller = ring(key).identify(bearer(GOOD))
    assert (caller.key_id, caller.name, caller.group) == (key.key_id, "app", "team")
    assert (caller.limits.concurrent, caller.weight) == (3, 2.0)
    assert [model for model in ("law-1", "law-", "base", "base-2", "law") if caller.may_use(model)] == [
        "law-1",
        "law-",
        "base",
    ]
    with pytest.raises(OpenAIError, match="may not use the model 'base-2'"):
        caller.check_model("base-2")


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ([], (401, "missing_api_key")),
        ([(b"authorization", b"")], (401, "missing_api_key")),
        ([(b"authorization", b"Basic " + GOOD.encode())], (401, "missing_api_key")),
        ([(b"authorization", GOOD.encode())], (401, "missing_api_key")),
        ([(b"authorization", b"Bearer")], (401, "missing_api_key")),
        ([(b"x-api-key", GOOD.encode())], (401, "missing_api_key")),
        (bearer(GOOD[:-1]), (401, "invalid_api_key")),
        (bearer(GOOD + "x"), (401, "invalid_api_key")),
        (bearer(sha256_of(GOOD)), (401, "invalid_api_key")),
        (bearer("none"), (401, "invalid_api_key")),
        ([*bearer("none"), *bearer(GOOD)], (401, "invalid_api_key")),
    ],
)
def test_all_else_is_refused_and_told_why(headers: list[tuple[bytes, bytes]], answer: tuple[int, str]) -> None:
    assert refused(ring(stored(GOOD)), headers) == answer


@given(st.binary(max_size=80))
def test_no_other_bytes_open_the_door(value: bytes) -> None:
    with pytest.raises(OpenAIError):
        ring(stored(GOOD)).identify([(b"authorization", value)])


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  "])
def test_the_scheme_has_no_case(scheme: bytes) -> None:
    assert ring(stored(GOOD)).identify([(b"authorization", scheme + GOOD.encode())]).name == "app"


def test_a_key_ends_at_its_time() -> None:
    key = stored(GOOD, expires_at=datetime.fromtimestamp(2_000, UTC))
    assert ring(key, now=1_999.9).identify(bearer(GOOD)).name == "app"
    assert refused(ring(key, now=2_000.0), bearer(GOOD)) == (401, "expired_api_key")


def test_a_key_without_the_scope_is_forbidden() -> None:
    made = ring(stored(GOOD, scopes=frozenset({"admin"})))
    assert refused(made, bearer(GOOD)) == (403, "scope_missing")
    assert made.may_control(bearer(GOOD))


@pytest.mark.parametrize(
    "fields",
    [{}, {"scopes": frozenset({"admin"}), "expires_at": datetime.fromtimestamp(1_000, UTC)}],
    ids=["inference", "expired"],
)
def test_only_admin_keys_control(fields: dict[str, Any]) -> None:
    made = ring(stored(GOOD, **fields))
    assert not made.may_control(bearer(GOOD))
    assert not made.may_control([])


def test_an_open_ring_knows_who_it_knows() -> None:
    made = ring(stored(GOOD), required=False)
    assert made.identify(bearer(GOOD)).name == "app"
    assert made.identify(bearer("none")) is OPEN
    assert made.identify([]) is OPEN


def test_keys_from_the_settings_stay_when_the_stores_change() -> None:
    digest = hashlib.sha256(b"old").hexdigest()
    made = KeyRing([digest])
    made.replace([stored(GOOD)])
    assert made.identify(bearer("old")).group == "static"
    made.replace([])
    assert made.identify(bearer("old")).group == "static"
    assert refused(made, bearer(GOOD))[0] == 401


def test_who_was_used_is_told_once() -> None:
    key = stored(GOOD)
    made = ring(key)
    made.identify(bearer(GOOD))
    made.identify(bearer(GOOD))
    assert made.take_used() == {key.key_id}
    assert made.take_used() == set()


def test_a_secret_is_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {3 + 43}


@pytest.mark.parametrize(
    ("given", "host", "required"),
    [
        ({}, "127.0.0.1", False),
        ({}, "::1", False),
        ({}, "0.0.0.0", True),
        ({}, "10.1.2.3", True),
        ({"api_keys": [sha256_of("k")]}, "127.0.0.1", True),
        ({"keys": "on"}, "127.0.0.1", True),
        ({"keys": "off"}, "0.0.0.0", False),
    ],
)
def test_keys_are_wanted_wherever_others_can_reach(given: dict[str, Any], host: str, required: bool) -> None:
    assert AccessSettings(**given).keys_required(host) is required


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x", "group": "Two Words"},
        {"name": "x", "models": ["a*b"]},
        {"name": "x", "models": [""]},
        {"name": "x", "weight": 0},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "limits": {"concurrent": 0}},
        {"name": "x", "expires_at": datetime(2030, 1, 1).isoformat()},
        {"name": "x", "expiry": None},
    ],
)
def test_nonsense_is_no_key(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        NewKey.model_validate(fields)


def test_soon_is_a_time() -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    assert NewKey(name="x", expires_at=soon).expires_at == soon
