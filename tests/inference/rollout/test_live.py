"""Rollouts as clients see them: real engine processes behind the real gateway, asked by many at once."""

import collections
import json
import os
import random
import signal
import threading
import time
import urllib.error

import pytest
from fastapi import FastAPI
from tests.inference import toy_model
from tests.inference.rollout.published import ONE, THREE, TWO, config, publish
from tests.inference.stand_in import QUICK, StandIn, chat, core_of, is_running, server_of

from textmill.contracts.jobs import DeployJob
from textmill.errors import JobFailed
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.engine.port import ModelFolder
from textmill_inference.engine.supervisor import LocalEngine
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.rollout.deployments import Deployments
from textmill_inference.rollout.restore import Restorer
from textmill_inference.rollout.watch import Watch

WORDS = 12
SAYS = {ONE: "one", TWO: "two", THREE: "three"}


class StandIns:
    """Makes stand-in engines, all with adapters."""

    def __init__(self, folder):
        self._folder = folder

    def make(self, name, label):
        return LocalEngine(name, StandIn(lora=True), self._folder / f"{label}.log", QUICK, label=label)

    def no_room(self, folder):
        return ""


class Stack:
    """A service without its jobs' queue: deployments on stand-in engines, and the gateway in front."""

    def __init__(self, store, folder, serve):
        self.store = store
        self.deployments = Deployments(store, folder / "cache", StandIns(folder), "base", {}, drain_s=60, settle_s=0.1)
        self.url = serve(Gateway(FastAPI(), self.deployments.routes, KeyRing(), 60.0))

    def deploy(self, model_id, name="tuned", **fields):
        job = DeployJob(name=name, model_id=model_id, **fields)
        self.deployments.deploy(job, JobContext(self.store, 1, "scratch/"))
        return job

    def ask(self, **options):
        return chat(self.url, "tuned", **({"words": 3} | options)).split()

    @property
    def route(self):
        return self.deployments.routes()["tuned"]


def publish_toy(store, tmp_path, model_id, shape=1, fails="", actual_weights=None):
    """A model that says its word, with a probe of its weights."""
    folder = tmp_path / model_id
    folder.mkdir(exist_ok=True)
    (folder / "weights.txt").write_text(model_id)
    files = {
        "config.json": config(shape),
        "answer.txt": SAYS[model_id],
        "parity.json": toy_model.probe(folder, ["one?", "two?"]),
        "weights.txt": actual_weights or model_id,
    }
    publish(store, model_id, files | ({"fails": fails} if fails else {}))


@pytest.fixture
def store(tmp_path):
    made = MemoryStore()
    for model_id in (ONE, TWO, THREE):
        publish_toy(made, tmp_path, model_id)
    return made


@pytest.fixture
def start(store, tmp_path, serve):
    made = []

    def build():
        made.append(Stack(store, tmp_path, serve))
        return made[-1]

    yield build
    for stack in made:
        stack.deployments.stop()


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"base weights")
    (folder / "config.json").write_text(config())
    (folder / "answer.txt").write_text("base")
    return ModelFolder(folder)


class Crowd:
    """``size`` clients that ask again and again, streaming, until the block ends. What they got is in ``answers``."""

    def __init__(self, stack, size=50, gap_s=0.02):
        self.answers, self.errors = [], []
        self._stack, self._gap_s = stack, gap_s
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(size)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait_for_more(len(self._threads) // 2)
        return self

    def __exit__(self, *error):
        self._done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _ask_on(self):
        while not self._done.is_set():
            try:
                self.answers.append(self._stack.ask(words=WORDS, gap_s=self._gap_s))
            except (urllib.error.URLError, AssertionError, OSError, KeyError) as exc:
                self.errors.append(exc)

    def wait_for_more(self, answers):
        wanted, deadline = len(self.answers) + answers, time.monotonic() + 120
        while len(self.answers) + len(self.errors) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def words_of(answers):
    """The distinct words of each answer, and how many answers had just those. A mixed answer has two."""
    assert {len(answer) for answer in answers} == {WORDS}
    return collections.Counter(tuple(sorted(set(answer))) for answer in answers)


@pytest.mark.parametrize("way", ["in_place", "second_engine", "adapters"])
def test_a_swap_under_50_streams_fails_and_mixes_no_answer(start, store, tmp_path, base, way, waits):
    stack = start()
    Restorer(stack.deployments, base).run()
    unmerged = way == "adapters"
    if way == "second_engine":
        publish_toy(store, tmp_path, TWO, shape=2)
    stack.deploy(ONE, unmerged=unmerged)
    first = stack.route.stable[0]
    with Crowd(stack) as crowd:
        stack.deploy(TWO, unmerged=unmerged)
        crowd.wait_for_more(100)
    assert crowd.errors == []
    seen = words_of(crowd.answers)
    assert seen.keys() == {("one",), ("two",)}
    assert stack.ask() == ["two"] * 3
    assert (stack.route.stable[0].engine is first.engine) == (way != "second_engine")
    waits(lambda: first.in_flight == 0, "nothing to be under way")


def test_a_replaced_engine_ends_only_when_its_last_stream_has(start, store, tmp_path, waits):
    publish_toy(store, tmp_path, TWO, shape=2)
    stack = start()
    stack.deploy(ONE)
    old, server = stack.route.stable[0], server_of(stack.route.stable[0].engine)
    hold = old.engine.folder.path / "hold"
    hold.touch()  # the stream lasts for as long as the test wants
    said, begun = [], threading.Event()
    asker = threading.Thread(
        target=lambda: said.extend(stack.ask(words=30, on_word=lambda _: begun.set())), daemon=True
    )
    asker.start()
    assert begun.wait(60)
    stack.deploy(TWO)
    assert stack.ask() == ["two"] * 3
    assert (old.in_flight, is_running(server)) == (1, True)
    hold.unlink()
    asker.join(60)
    assert said == ["one"] * 30
    waits(lambda: not is_running(server), "the old engine to end")
    waits(lambda: not stack.deployments.table.leaving("tuned"), "it to be forgotten")


def test_a_refused_model_is_seen_by_nobody(start, store, tmp_path):
    publish_toy(store, tmp_path, TWO, shape=2, actual_weights="other")
    publish_toy(store, tmp_path, THREE, actual_weights="other")
    stack = start()
    stack.deploy(ONE)
    with Crowd(stack, size=10) as crowd:
        for fields in ({}, {"canary_percent": 50}):
            with pytest.raises(JobFailed, match="nats a token off"):
                stack.deploy(TWO, **fields)
        crowd.wait_for_more(10)
    assert crowd.errors == []
    assert words_of(crowd.answers).keys() == {("one",)}
    assert stack.route.canary is None


@pytest.mark.parametrize("victim", ["server", "core"])
def test_an_engine_killed_under_load_comes_back_and_every_request_is_answered_or_told(start, victim, waits):
    stack = start()
    stack.deploy(ONE)
    engine = stack.route.stable[0].engine
    with Crowd(stack, size=20) as crowd:
        os.kill(server_of(engine) if victim == "server" else core_of(engine.folder), signal.SIGKILL)
        crowd.wait_for_more(100)
    assert stack.ask() == ["one"] * 3
    whole = [answer for answer in crowd.answers if len(answer) == WORDS]
    assert len(whole) >= 60
    assert {word for answer in whole for word in answer} == {"one"}
    # Begun streams break off with an error event of their own; nothing else is lost.
    for error in crowd.errors:
        assert repr(error) == "KeyError('choices')"
    assert len(crowd.errors) <= 20
    waits(lambda: stack.route.stable[0].in_flight == 0, "nothing to be under way")


def test_a_canarys_share_of_real_requests_is_within_binomial_bounds(start, store, tmp_path, monkeypatch, waits):
    dice = random.Random(11)
    monkeypatch.setattr("textmill_inference.gateway.relay.random", dice)
    stack = start()
    stack.deploy(ONE)
    stack.deploy(TWO, canary_percent=30)
    said = collections.Counter(stack.ask(words=1)[0] for _ in range(300))
    # 99.99 % of a binomial of 300 at 0.3: 3.9 standard deviations of 7.9.
    assert abs(said["two"] - 90) <= 31
    assert said["one"] + said["two"] == 300
    # The last one is counted when its answer has been sent.
    waits(lambda: stack.route.canary.tally.counts.requests == said["two"], "the canary's requests to be counted")
    waits(lambda: stack.route.stable[0].tally.counts.requests == said["one"], "the others to be counted")
    stack.deployments.promote("tuned")
    assert stack.ask() == ["two"] * 3


def test_a_failing_canary_is_taken_back_while_requests_go_on(start, store, tmp_path, waits):
    publish_toy(store, tmp_path, TWO, fails="0.5")
    stack = start()
    stack.deploy(ONE)
    stack.deploy(TWO, canary_percent=50, min_requests=20)
    watch = threading.Thread(target=Watch(stack.deployments, every_s=0.05).run, daemon=True)
    watch.start()
    with Crowd(stack, size=10, gap_s=0.0) as crowd:
        waits(lambda: stack.route.canary is None, "the canary to be taken back")
        crowd.wait_for_more(50)
    end = stack.deployments.records.get("tuned").last_trial
    assert end.outcome == "aborted_automatically"
    # Each request of the canary fails by chance, so what is known of how many did is: not none, and not all.
    assert end.figures.trial.requests >= 20
    assert 0 < end.figures.trial.errors < end.figures.trial.requests
    assert end.figures.trial.errors <= len(crowd.errors)
    assert end.figures.stable.errors == 0
    assert stack.ask() == ["one"] * 3


def test_a_shadow_is_asked_and_never_heard(start, waits):
    stack = start()
    stack.deploy(ONE)
    stack.deploy(TWO, shadow_percent=50)
    shadow = stack.route.tap.upstream
    for _ in range(40):
        assert stack.ask() == ["one"] * 3
        waits(lambda: shadow.in_flight == 0, "the copy to be answered")  # of too many at once some aren't made
    waits(lambda: shadow.tally.counts.requests == 20, "the copies to be counted")
    assert (shadow.tally.counts.errors, shadow.tally.counts.tokens, shadow.in_flight) == (0, 60, 0)
    os.kill(server_of(shadow.engine), signal.SIGKILL)
    assert {word for _ in range(10) for word in stack.ask()} == {"one"}


def test_a_rollback_under_load_brings_the_version_before_back(start, store, tmp_path):
    stack = start()
    stack.deploy(ONE)
    bad = stack.deploy(TWO)
    with Crowd(stack, size=20) as crowd:
        job = stack.deployments.rollback("tuned", bad.deployment_id)
        stack.deployments.deploy(job, JobContext(stack.store, 1, "scratch/"))
        crowd.wait_for_more(40)
    assert crowd.errors == []
    assert words_of(crowd.answers).keys() == {("one",), ("two",)}
    assert stack.ask() == ["one"] * 3


def test_a_restarted_service_has_its_canary_shadow_and_adapter_back(start, base, waits):
    first = start()
    Restorer(first.deployments, base).run()
    first.deploy(ONE)
    first.deploy(TWO, canary_percent=100)
    first.deploy(THREE, shadow_percent=100)
    first.deploy(THREE, name="light", unmerged=True)
    assert first.ask() == ["two"] * 3
    engines = {server_of(live.upstream.engine) for one in first.deployments.table.all() for _, live in one.versions()}
    assert len(engines) == 4
    first.deployments.stop()
    waits(lambda: not any(is_running(pid) for pid in engines), "the engines to be gone")
    second = start()
    Restorer(second.deployments, base).run()
    assert second.ask() == ["two"] * 3
    assert chat(second.url, "light", 2).split() == ["three"] * 2
    assert chat(second.url, "base", 2).split() == ["base"] * 2
    shadow = second.route.tap.upstream
    waits(lambda: shadow.tally.counts.requests == 1, "the copy to be answered")
    second.deployments.abort("tuned")
    assert second.ask() == ["one"] * 3
    assert json.loads(second.store.get("deployments/tuned.json"))["last_trial"]["outcome"] == "aborted"
