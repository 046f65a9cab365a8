"""Which engine answers a request: percentages, replicas, and how many copies a shadow gets."""

import random
from types import SimpleNamespace

import pytest

from textmill_inference.gateway.ports import Outcome
from textmill_inference.rollout.routes import Route, ShadowTap, Upstream


def upstream(name="m", ready=True, model=None):
    engine = SimpleNamespace(
        name=name, url="http://x", ready=ready, trouble="it died", knows=lambda model: model == name
    )
    return Upstream(engine, name, model or name)


def test_a_canary_gets_its_share_within_binomial_bounds():
    route = Route([upstream()], canary=upstream(), canary_share=0.1)
    dice = random.Random(7)
    chosen = sum(route.choose(dice.random()) is route.canary for _ in range(10_000))
    # 99.99 % of a binomial of 10,000 at 0.1: 3.9 standard deviations of 30.
    assert abs(chosen - 1_000) <= 117


@pytest.mark.parametrize(("share", "all_of"), [(0.0, "stable"), (1.0, "canary")])
def test_no_share_is_nobody_and_a_whole_one_everybody(share, all_of):
    route = Route([upstream()], canary=upstream(), canary_share=share)
    wanted = route.canary if all_of == "canary" else route.stable[0]
    assert all(route.choose(sample) is wanted for sample in (0.0, 0.5, 0.999999))


def test_nobody_waits_for_a_canary_that_does_not_answer():
    route = Route([upstream()], canary=upstream(ready=False), canary_share=1.0)
    assert route.choose(0.0) is route.stable[0]


def test_of_replicas_the_ready_one_with_the_fewest_requests_answers():
    busy, idle, dead = upstream(), upstream(), upstream(ready=False)
    busy.in_flight = 3
    assert Route([busy, idle, dead]).choose(0.5) is idle
    idle.in_flight = 4
    assert Route([busy, idle, dead]).choose(0.5) is busy
    assert Route([dead]).choose(0.5) is dead


def test_an_engine_that_lacks_the_adapter_is_not_ready_for_it():
    adapter = upstream("base", model="tuned@1")
    assert not adapter.ready
    assert adapter.trouble == "its engine runs, but has not loaded 'tuned@1' yet"
    assert upstream(ready=False).trouble == "it died"


@pytest.mark.parametrize(("share", "copies"), [(0.0, 0), (0.1, 100), (0.3, 300), (1.0, 1000)])
def test_a_shadow_gets_its_share(share, copies):
    tap = ShadowTap(upstream(), share)
    assert sum(tap.take() is not None for _ in range(1000)) == pytest.approx(copies, abs=1)
    assert tap.skipped == 0


def test_a_busy_or_dead_shadow_gets_none_and_it_is_counted():
    tap = ShadowTap(upstream(), 1.0, in_flight=2)
    tap.upstream.in_flight = 2
    assert tap.take() is None
    tap.upstream.in_flight = 1
    assert tap.take() is tap.upstream
    tap.upstream.engine.ready = False
    assert tap.take() is None
    assert tap.skipped == 2
    assert Route([upstream()]).take_shadow() is None


def test_a_client_that_left_says_nothing_about_a_version():
    made = upstream()
    for status, complete in ((200, True), (200, False), (500, True), (503, False), (404, True), (499, False)):
        made.note(Outcome(status, complete, tokens=7, seconds=2.0, ttft_s=0.5 if status == 200 else None))
    figures = made.tally.counts.figures()
    assert (figures.requests, figures.errors, figures.tokens, figures.streamed) == (5, 3, 35, 2)
    assert (figures.mean_seconds, figures.mean_ttft_s) == (2.0, 0.5)
