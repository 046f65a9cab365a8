"""The queue alone: who is next, who is turned away. Counts of tokens, no clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill_inference.gateway.fair_queue import FairQueue


def serve(queue: FairQueue[tuple[str, int]], requests: int, actual: dict[str, int]) -> dict[str, int]:
    """Serve so many, one after the other, each using its key's ``actual`` tokens. Tokens by key."""
    served = dict.fromkeys(actual, 0)
    for _ in range(requests):
        (key, _), charged = queue.pop()
        queue.settle(key, charged, actual[key])
        served[key] += actual[key]
    return served


def backlog(weights: dict[str, float], reserved: dict[str, int], each: int) -> FairQueue[tuple[str, int]]:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for key, weight in weights.items():
        for number in range(each):
            queue.join(key, weight, reserved[key], (key, number))
    return queue


def test_tokens_are_shared_alike_however_long_a_keys_requests_are() -> None:
    queue = backlog({"long": 1, "short": 1}, {"long": 4000, "short": 100}, 2000)
    served = serve(queue, 1500, {"long": 4000, "short": 100})
    assert abs(served["long"] - served["short"]) <= 4000


def test_tokens_are_shared_alike_also_where_all_reserve_the_same_and_use_less() -> None:
    queue = backlog({"long": 1, "short": 1}, {"long": 4096, "short": 4096}, 2000)
    served = serve(queue, 1500, {"long": 3000, "short": 60})
    assert abs(served["long"] - served["short"]) <= 2 * 4096


def test_what_a_request_took_beyond_its_guess_is_paid_for() -> None:
    queue = backlog({"a": 1, "b": 1}, {"a": 10, "b": 100}, 30)
    (key, _), charged = queue.pop()
    assert key == "a"
    queue.settle("a", charged, 1000)
    turns = []
    for _ in range(12):
        (key, _), charged = queue.pop()
        queue.settle(key, charged, 100)
        turns.append(key)
    assert turns.index("a") == 10


def test_twice_the_weight_gets_twice_the_tokens() -> None:
    queue = backlog({"a": 2, "b": 1}, {"a": 100, "b": 100}, 400)
    served = serve(queue, 300, {"a": 100, "b": 100})
    assert abs(served["a"] - 2 * served["b"]) <= 300


def test_weight_counts_also_while_all_are_under_way() -> None:
    queue = backlog({"a": 2, "b": 1}, {"a": 100, "b": 100}, 40)
    turns = [queue.pop()[0][0] for _ in range(30)]
    assert abs(turns.count("a") - 20) <= 1


def test_what_was_never_served_is_not_charged() -> None:
    queue = backlog({"a": 1, "b": 1}, {"a": 1000, "b": 1000}, 2)
    (key, _), charged = queue.pop()
    queue.refund(key, charged)
    assert queue.pop()[0][0] == key


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 900), st.integers(1, 4)), min_size=2))
def test_of_keys_that_all_wait_none_gets_ahead_by_more_than_a_request(keys: dict[str, tuple[int, int]]) -> None:
    """The bound of start-time fair queuing: by weight, at most one request of each of the two."""
    queue = backlog({k: w for k, (_, w) in keys.items()}, {k: t for k, (t, _) in keys.items()}, 200)
    served = dict.fromkeys(keys, 0)
    left = dict.fromkeys(keys, 200)
    while min(left.values()) > 0:
        (key, _), charged = queue.pop()
        tokens, _ = keys[key]
        queue.settle(key, charged, tokens)
        served[key] += tokens
        left[key] -= 1
        for a, (a_tokens, a_weight) in keys.items():
            for b, (b_tokens, b_weight) in keys.items():
                ahead = served[a] / a_weight - served[b] / b_weight
                assert ahead <= a_tokens / a_weight + b_tokens / b_weight + 1e-6


def test_who_comes_back_has_not_saved_up_a_turn() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    queue.pass_by("idler", 1, 10)
    for number in range(1000):
        queue.pass_by("worker", 1, 100)
        queue.join("worker", 1, 100, ("worker", number))
    for number in range(1000):
        queue.join("idler", 1, 100, ("idler", number))
    served = serve(queue, 200, {"idler": 100, "worker": 100})
    assert abs(served["idler"] - served["worker"]) <= 200


def test_what_nobody_else_wanted_is_not_held_against_a_key() -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for _ in range(1000):
        queue.settle("worker", queue.pass_by("worker", 1, 100), 100)
    for number in range(100):
        queue.join("worker", 1, 100, ("worker", number))
        queue.join("new", 1, 100, ("new", number))
    served = serve(queue, 100, {"new": 100, "worker": 100})
    assert abs(served["new"] - served["worker"]) <= 200


def test_within_a_key_first_come_is_first_served() -> None:
    queue = backlog({"a": 1}, {"a": 5}, 10)
    assert [queue.pop()[0][1] for _ in range(10)] == list(range(10))


def test_a_full_queue_loses_the_newest_of_the_greediest() -> None:
    queue = backlog({"greedy": 1}, {"greedy": 100}, 50)
    queue.join("modest", 1, 100, ("modest", 0))
    assert queue.make_room("greedy", 1, 100) is None
    assert queue.make_room("modest", 1, 100) == ("greedy", 49)
    assert len(queue) == 50
    assert queue.make_room("third", 1, 100) == ("greedy", 48)


def test_nobody_makes_way_for_a_key_that_waits_for_as_much() -> None:
    queue = backlog({"a": 1, "b": 1}, {"a": 100, "b": 100}, 5)
    assert queue.make_room("b", 1, 100) is None
    assert queue.make_room("c", 1, 500) is None
    assert queue.make_room("c", 1, 499) in {("a", 4), ("b", 4)}


def test_a_key_with_weight_may_fill_more_of_the_queue() -> None:
    queue = backlog({"heavy": 10, "light": 1}, {"heavy": 100, "light": 100}, 20)
    assert queue.make_room("heavy", 10, 100) == ("light", 19)


def test_nobody_waits() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.make_room("a", 1, 1) is None
    assert not queue.leave("a", "x")
    with pytest.raises(IndexError):
        queue.pop()


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_nobody_is_lost_and_nobody_is_served_twice(seed: int, steps: int) -> None:
    chance, queue, waiting, number = random.Random(seed), FairQueue[tuple[str, int]](), {}, 0
    for _ in range(steps):
        step = chance.choice(["join", "join", "pop", "leave", "room"])
        if step == "join":
            number += 1
            item = (chance.choice("abc"), number)
            waiting[item] = chance.randint(1, 1000)
            queue.join(item[0], chance.choice([1, 3]), waiting[item], item)
        elif step == "pop" and waiting:
            item, charged = queue.pop()
            del waiting[item]
            if chance.random() < 0.5:
                queue.settle(item[0], charged, chance.randint(0, 1000))
            else:
                queue.refund(item[0], charged)
        elif step == "leave" and waiting:
            item = chance.choice(list(waiting))
            del waiting[item]
            assert queue.leave(item[0], item)
            assert not queue.leave(item[0], item)
        elif step == "room":
            item = queue.make_room("d", 1, 1)
            if item is not None:
                del waiting[item]
        assert len(queue) == len(waiting)
    assert {queue.pop()[0] for _ in range(len(queue))} == set(waiting)
