"""The capacity search against a made-up server whose capacity is known: its claims are held to their share."""

import math
import random

import pytest
from pydantic import ValidationError

from textmill.contracts.capacity import CapacityOptions
from textmill_inference.loadtest.capacity import CapacitySearch


def search(options, passes, spoils=lambda load: False, thin=lambda load: False, seconds=1.0):
    """Play a search to its end; ``passes`` says how a stage at a load goes."""
    searching = CapacitySearch(options)
    while (load := searching.next()) is not None:
        met = None if spoils(load) else passes(load)
        searching.tell(met, evidence=not thin(load), seconds=seconds)
    return searching.finding()


def noisy(capacity, spread, rng):
    """Each stage finds the server's capacity moved by a log-normal share, so a stage at ``capacity`` is a coin toss."""
    return lambda load: load <= capacity * math.exp(rng.gauss(0, spread))


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 100, 777, 1000])
def test_a_server_without_noise_is_bracketed_to_the_resolution(capacity):
    found = search(CapacityOptions(), lambda load: load <= capacity)
    assert found.stopped == "decided"
    assert found.low <= capacity < found.high
    assert found.high <= max(found.low + 1, found.low * 1.05)


@pytest.mark.parametrize(("spread", "confidence"), [(0.01, 0.9), (0.05, 0.9), (0.2, 0.9), (0.05, 0.95), (0.1, 0.8)])
def test_the_true_capacity_is_in_the_interval_at_the_claimed_share(spread, confidence):
    rng = random.Random(5)
    runs, held, decided = 400, 0, 0
    for _ in range(runs):
        capacity = math.exp(rng.uniform(math.log(2), math.log(3000))) + 0.5
        options = CapacityOptions(confidence=confidence, max_stages=200)
        found = search(options, noisy(capacity, spread, rng))
        held += (found.low is None or found.low <= capacity) and (found.high is None or capacity <= found.high)
        decided += found.stopped == "decided"
    # Three standard errors below the claim would be no proof of a fault; the search is built to stay above it.
    assert held / runs >= confidence - 3 * math.sqrt(confidence * (1 - confidence) / runs)
    assert decided / runs > 0.8


def test_the_interval_is_no_wider_than_the_noise_asks_for():
    rng = random.Random(7)
    widths = []
    for _ in range(100):
        found = search(CapacityOptions(max_stages=200), noisy(800.5, 0.03, rng))
        if found.stopped == "decided":
            widths.append(found.high / found.low)
    assert len(widths) > 90
    assert sorted(widths)[len(widths) // 2] < 1.35


@pytest.mark.parametrize(("capacity", "verdict"), [(400.5, "no"), (4000.5, "yes")])
def test_the_verdict_for_a_wanted_load_is_right_at_the_claimed_share(capacity, verdict):
    rng = random.Random(11)
    told = [search(CapacityOptions(wanted=1000), noisy(capacity, 0.2, rng)).verdict for _ in range(200)]
    assert told.count(verdict) > 190
    assert told.count("no" if verdict == "yes" else "yes") <= 0.05 * 200


def test_at_the_capacity_itself_a_verdict_is_seldom_claimed():
    """Every stage at the wanted load is a coin toss: a search that still answers is wrong to."""
    rng = random.Random(3)
    told = [search(CapacityOptions(wanted=1000, quick=True), lambda load: rng.random() < 0.5) for _ in range(400)]
    claimed = [found for found in told if found.verdict in ("yes", "no")]
    assert len(claimed) / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_quick_answers_for_the_wanted_load_alone():
    found = search(CapacityOptions(wanted=1000, quick=True), lambda load: load <= 5000)
    assert (found.verdict, found.stopped, found.low, found.high) == ("yes", "decided", 1000, None)
    assert {trial.load for trial in found.trials} == {1000}
    found = search(CapacityOptions(wanted=1000, quick=True), lambda load: load <= 500)
    assert (found.verdict, found.stopped, len(found.trials)) == ("no", "decided", 6)


def test_spoiled_stages_never_count_as_evidence_for_no():
    found = search(CapacityOptions(wanted=1000), lambda load: False, spoils=lambda load: True)
    assert (found.verdict, found.low, found.high) == ("undecided", None, None)
    assert found.stopped == "generator"
    found = search(CapacityOptions(wanted=1000), lambda load: load <= 5000, spoils=lambda load: load > 300)
    assert (found.verdict, found.high, found.stopped) == ("undecided", None, "generator")
    assert 285 <= found.low <= 300
    assert "own limit" in found.why


def test_stages_with_too_few_requests_steer_and_prove_nothing():
    found = search(CapacityOptions(), lambda load: load <= 20, thin=lambda load: True)
    assert (found.low, found.high, found.stopped) == (None, None, "too few requests")
    assert found.highest_met == 20


def test_the_search_is_bounded_in_stages_and_in_time():
    found = search(CapacityOptions(max_stages=7), lambda load: load <= 100)
    assert (found.stopped, len(found.trials)) == ("stages", 7)
    assert "max_stages" in found.why
    found = search(CapacityOptions(max_seconds=50), lambda load: load <= 100, seconds=20)
    assert (found.stopped, len(found.trials)) == ("time", 3)


def test_the_ends_of_the_allowed_range():
    found = search(CapacityOptions(max_load=64), lambda load: True)
    assert (found.low, found.high, found.stopped) == (64, None, "highest load")
    found = search(CapacityOptions(min_load=4), lambda load: False)
    assert (found.low, found.high, found.stopped) == (None, 4, "lowest load")


def test_rates_need_not_be_whole():
    found = search(CapacityOptions(kind="rate", min_load=0.01, start=1), lambda load: load <= 0.37)
    assert found.low <= 0.37 < found.high
    assert found.high / found.low <= 1.06


def test_any_server_at_all_ends_the_search():
    rng = random.Random(13)
    for _ in range(300):
        found = search(
            CapacityOptions(wanted=rng.choice([None, 50.0]), max_stages=80),
            lambda load: rng.random() < 0.5,
            spoils=lambda load: rng.random() < 0.2,
            thin=lambda load: rng.random() < 0.2,
        )
        assert len(found.trials) <= 80


def test_a_start_outside_the_range_is_named():
    with pytest.raises(ValidationError, match="wanted is 5000, outside min_load 1 to max_load 4096"):
        CapacityOptions(wanted=5000)
    with pytest.raises(ValidationError, match="quick answers for one load"):
        CapacityOptions(quick=True)
