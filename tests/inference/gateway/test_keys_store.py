"""Keys in the store, and how gateways come to know them. Two gateways are two rings on one store."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.synth.virtual_time import run

from textmill.contracts.base import utc_now
from textmill.contracts.keys import KeyLimits, NewKey
from textmill.errors import BadRequest, DependencyDown, NotFound
from textmill.store import MemoryStore, ObjectInfo, ObjectStore, S3Store
from textmill_inference.gateway.admission import Admission, Room
from textmill_inference.gateway.key_watch import KeyWatch
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.keystore import KeyStore
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.gateway.usage_exchange import UsageExchange


class WatchedStore(MemoryStore):
    """Counts reads and lists, and can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.down = False
        self.lose_next: str | None = None

    def _call(self, what: str, key: str) -> None:
        self.calls.append(f"{what} {key}")
        if self.down:
            raise DependencyDown("the object store at s3.test can't be reached")
        if self.lose_next is not None and key.startswith(self.lose_next):
            self.lose_next = None
            raise DependencyDown("the object store went away in the middle")

    def get(self, key: str) -> bytes:
        self._call("get", key)
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        self._call("put", key)
        super().put(key, data)

    def delete(self, key: str) -> None:
        self._call("delete", key)
        super().delete(key)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        self._call("list", prefix)
        return super().list(prefix, after)

    def everything(self) -> bytes:
        return b"\n".join(info.key.encode() + b" " + MemoryStore.get(self, info.key) for info in super().list(""))


class Gateway:
    """The part of one that knows keys, on a clock of its own."""

    def __init__(self, store: ObjectStore) -> None:
        self.now = 0.0
        self.ring = KeyRing(required=True)
        self.watch = KeyWatch(KeyStore(store), self.ring, clock=lambda: self.now)

    def tick(self, after_s: float = 2.0) -> None:
        self.now += after_s
        run(self.watch.tick())

    def answer(self, key: str) -> int:
        try:
            self.ring.identify([(b"authorization", b"Bearer " + key.encode())])
        except OpenAIError as error:
            return error.status
        return 200


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
def keys(store: WatchedStore) -> KeyStore:
    return KeyStore(store)


def test_a_key_is_shown_once_and_kept_nowhere(store: WatchedStore, keys: KeyStore) -> None:
    made = keys.create(NewKey(name="app"))
    assert made.key.encode() not in store.everything()
    assert made.key not in repr(keys.find(made.view.key_id))
    assert made.key.startswith(made.view.hint)
    assert "sha256" not in made.view.model_dump()


def test_every_gateway_sees_a_new_key_and_its_end_at_its_next_look(store: WatchedStore, keys: KeyStore) -> None:
    gateways = [Gateway(store), Gateway(store)]
    made = keys.create(NewKey(name="app"))
    for gateway in gateways:
        gateway.tick()
        assert gateway.answer(made.key) == 200
    keys.revoke(made.view.key_id)
    for gateway in gateways:
        gateway.tick()
        assert gateway.answer(made.key) == 401


def test_a_request_never_touches_the_store_and_a_look_without_news_reads_one_object(
    store: WatchedStore, keys: KeyStore
) -> None:
    gateway = Gateway(store)
    made = [keys.create(NewKey(name=f"app {n}")).key for n in range(20)]
    gateway.tick()
    store.calls.clear()
    for key in made * 10:
        assert gateway.answer(key) == 200
    assert store.calls == []
    gateway.tick()  # tells which keys were used
    store.calls.clear()
    gateway.tick()
    assert store.calls == ["get keys/version"]


def test_one_new_key_among_many_is_one_more_read(store: WatchedStore, keys: KeyStore) -> None:
    gateway = Gateway(store)
    for number in range(20):
        keys.create(NewKey(name=f"app {number}"))
    gateway.tick()
    keys.create(NewKey(name="one more"))
    store.calls.clear()
    gateway.tick()
    assert [call.split("/")[1] for call in store.calls] == ["version", "active", "active"]


def test_a_change_whose_version_was_lost_is_seen_within_a_minute(store: WatchedStore, keys: KeyStore) -> None:
    gateway = Gateway(store)
    made = keys.create(NewKey(name="app"))
    gateway.tick()
    store.lose_next = "keys/version"
    with pytest.raises(DependencyDown):
        keys.revoke(made.view.key_id)
    for _ in range(30):
        gateway.tick()
    assert gateway.answer(made.key) == 401


def test_a_revocation_that_was_cut_short_can_be_repeated(store: WatchedStore, keys: KeyStore) -> None:
    made = keys.create(NewKey(name="app"))
    store.lose_next = "keys/active/"
    with pytest.raises(DependencyDown):
        keys.revoke(made.view.key_id)
    assert list(keys.ids(revoked=True)) == [made.view.key_id]
    assert keys.revoke(made.view.key_id).revoked_at is not None
    assert (list(keys.ids(revoked=False)), list(keys.ids(revoked=True))) == ([], [made.view.key_id])
    first = keys.find(made.view.key_id).revoked_at
    assert keys.revoke(made.view.key_id).revoked_at == first


def test_with_the_store_down_known_keys_work_and_a_new_gateway_says_503(store: WatchedStore, keys: KeyStore) -> None:
    old, new = Gateway(store), Gateway(store)
    made = keys.create(NewKey(name="app"))
    old.tick()
    store.down = True
    old.tick()
    new.tick()
    assert (old.answer(made.key), old.answer("other"), new.answer(made.key)) == (200, 401, 503)
    store.down = False
    new.tick()
    assert new.answer(made.key) == 200


def test_a_broken_record_lets_nobody_in_and_keeps_nobody_out(store: WatchedStore, keys: KeyStore) -> None:
    gateway = Gateway(store)
    good, bad = (keys.create(NewKey(name=name)) for name in ("good", "bad"))
    store.put(f"keys/active/{bad.view.key_id}.json", b'{"name": 1}')
    gateway.tick()
    assert (gateway.answer(good.key), gateway.answer(bad.key)) == (200, 401)


def test_last_used_is_written_at_most_every_ten_minutes(store: WatchedStore, keys: KeyStore) -> None:
    gateway = Gateway(store)
    made = keys.create(NewKey(name="app"))
    assert keys.view(keys.find(made.view.key_id)).last_used_at is None
    gateway.tick()
    store.calls.clear()
    for _ in range(400):  # 800 s
        gateway.answer(made.key)
        gateway.tick()
    assert store.calls.count(f"put keys/used/{made.view.key_id}") == 2
    last = keys.view(keys.find(made.view.key_id)).last_used_at
    assert last is not None
    assert abs(last - utc_now()) < timedelta(minutes=1)


def test_what_makes_no_sense_is_refused(keys: KeyStore) -> None:
    with pytest.raises(BadRequest, match="is past"):
        keys.create(NewKey(name="app", expires_at=datetime(2020, 1, 1, tzinfo=UTC)))
    with pytest.raises(NotFound):
        keys.revoke("key_" + "0" * 32)


def test_keys_are_listed_in_the_order_of_their_making(keys: KeyStore) -> None:
    made = [keys.create(NewKey(name=str(n))).view.key_id for n in range(5)]
    keys.revoke(made[1])
    assert list(keys.ids(revoked=True)) == made
    assert list(keys.ids(revoked=False)) == [made[0], *made[2:]]
    assert list(keys.ids(revoked=True, after=made[0])) == made[1:]


@pytest.mark.slow
def test_a_real_store_does_the_same(s3_store: S3Store) -> None:
    keys, gateways = KeyStore(s3_store), [Gateway(s3_store), Gateway(s3_store)]
    made = [keys.create(NewKey(name=str(n), limits=KeyLimits(tokens_per_day=100))) for n in range(3)]
    for gateway in gateways:
        gateway.tick()
        assert [gateway.answer(one.key) for one in made] == [200, 200, 200]
    keys.revoke(made[1].view.key_id)
    for gateway in gateways:
        gateway.tick()
        assert [gateway.answer(one.key) for one in made] == [200, 401, 200]
    ids = [one.view.key_id for one in made]
    assert (list(keys.ids(revoked=True)), list(keys.ids(revoked=True, after=ids[0]))) == (ids, ids[1:])
    assert keys.view(keys.find(ids[0])).last_used_at is not None
    clock = [1_000_000.0]
    first, second = Counting(s3_store, clock), Counting(s3_store, clock)
    first.ask(gateways[0].ring, made[0].key, 90, used=90)
    first.tick()
    second.tick()
    assert second.ask(gateways[1].ring, made[0].key, 20) == 429


# -- quotas over several gateways ----------------------------------------------------------------------------------


class Counting:
    """The part of a gateway that counts."""

    def __init__(self, store: ObjectStore, clock: list[float]) -> None:
        self.admission = Admission(Room(), clock=lambda: clock[0])
        self.exchange = UsageExchange(store, self.admission, clock=lambda: clock[0])

    def tick(self) -> None:
        run(self.exchange.tick())

    def ask(self, ring: KeyRing, key: str, tokens: int, used: int | None = None) -> int:
        caller = ring.identify([(b"authorization", b"Bearer " + key.encode())])
        try:
            permit = self.admission.try_enter(caller, "m", tokens)
        except OpenAIError as error:
            return error.status
        assert permit is not None
        if used is not None:
            permit.release(used)
        return 200


@pytest.fixture
def limited(store: WatchedStore, keys: KeyStore) -> tuple[KeyRing, str]:
    made = keys.create(NewKey(name="app", limits=KeyLimits(tokens_per_day=1000, concurrent=2)))
    gateway = Gateway(store)
    gateway.tick()
    return gateway.ring, made.key


def test_a_quota_holds_over_all_gateways_and_over_a_restart(store: WatchedStore, limited: tuple[KeyRing, str]) -> None:
    clock = [1_000_000.0]
    first, second = Counting(store, clock), Counting(store, clock)
    assert first.ask(*limited, 600, used=600) == 200
    first.tick()
    second.tick()
    assert second.ask(*limited, 401) == 429
    assert second.ask(*limited, 400, used=400) == 200
    second.tick()
    restarted = Counting(store, clock)
    restarted.tick()
    assert restarted.ask(*limited, 1) == 429
    clock[0] += 90_000
    restarted.tick()
    assert restarted.ask(*limited, 1000) == 200


def test_what_a_dead_gateway_had_under_way_is_free_soon(store: WatchedStore, limited: tuple[KeyRing, str]) -> None:
    clock = [1_000_000.0]
    dead, alive = Counting(store, clock), Counting(store, clock)
    for _ in range(2):
        assert dead.ask(*limited, 1) == 200
    dead.tick()
    alive.tick()
    assert alive.ask(*limited, 1) == 429
    clock[0] += 16
    alive.tick()
    assert alive.ask(*limited, 1) == 200


def test_what_is_too_old_to_count_is_swept(store: WatchedStore, limited: tuple[KeyRing, str]) -> None:
    clock = [1_000_000.0]
    old, new = Counting(store, clock), Counting(store, clock)
    old.ask(*limited, 1, used=1)
    old.tick()
    clock[0] += 100_000
    new.tick()
    assert list(store.list("keys/usage/")) == []


def test_with_the_store_down_each_gateway_counts_for_itself(store: WatchedStore, limited: tuple[KeyRing, str]) -> None:
    clock = [1_000_000.0]
    gateway = Counting(store, clock)
    gateway.ask(*limited, 600, used=600)
    store.down = True
    gateway.tick()
    assert (gateway.ask(*limited, 401), gateway.ask(*limited, 400)) == (429, 200)
