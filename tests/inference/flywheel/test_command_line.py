"""'textmill traffic' and 'textmill compare' against the services' own routes and workers, in one process."""

import json
import threading

import pytest
from fastapi import APIRouter
from traffic_made import logged, store_with
from typer.testing import CliRunner

from textmill.bus import MemoryBus
from textmill.contracts.load import TraceEntry
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.worker import Pace, Worker
from textmill_cli.main import app as textmill
from textmill_inference.flywheel.api import traffic_router
from textmill_inference.loadtest.keyrefs import KeySource
from textmill_inference.pairwise.api import comparisons_router
from textmill_inference.pairwise.job import Comparer
from textmill_ingest.worker import build_corpus, keep_harvest
from textmill_synth.settings import SynthSettings
from textmill_synth.worker import SynthHandler
from textmill_trainer.preferences_api import preferences_router

KINDS = ("compare", "harvest", "corpus", "synth")


@pytest.fixture
def store():
    return store_with(logged(0, "How many?", "Six."), logged(1, "Who?", "Nobody."), logged(2, "Why?", "Because."))


@pytest.fixture
def say(store, engine_server, serve, monkeypatch):
    """Runs a command and gives what it printed; as JSON unless it isn't."""
    bus = MemoryBus()
    jobs = Jobs(store, ring=bus.ring)
    comparer = Comparer(engine_server.url, "", KeySource(environ={}).key)
    app = create_app("all", jobs=jobs, kinds=KINDS, checks={})
    routers: tuple[APIRouter, ...] = (
        comparisons_router(store, jobs, comparer), traffic_router(store, jobs), preferences_router(store),
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    url = serve(app)
    for service in ("INGEST", "SYNTH", "TRAINER", "INFERENCE"):
        monkeypatch.setenv(f"TEXTMILL_CLI_{service}_URL", url)
    handlers = {
        "compare": comparer, "harvest": keep_harvest, "corpus": build_corpus, "synth": SynthHandler(SynthSettings()),
    }  # fmt: skip
    worker = Worker(jobs, bus, handlers, "g", Pace(heartbeat_s=0.05, recover_every_s=60, grace_s=5))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()

    def say(*words, fails=False):
        done = CliRunner().invoke(textmill, [*words, "--json"])
        assert (done.exit_code != 0) == fails, done.output
        return done.output if fails else json.loads(done.stdout)

    yield say
    worker.drain()
    thread.join(60)


def test_the_policy(say):
    say("traffic", "off")
    assert say("traffic", "policy")["rules"] == []
    say("traffic", "log", "--share", "0.1", "--days", "7")
    found = say("traffic", "log", "--model", "small", "--group", "desk", "--share", "0")
    # What names more comes first: the first rule that fits decides.
    assert [(r["model"], r["group"], r["share"]) for r in found["rules"]] == [("small", "desk", 0.0), (None, None, 0.1)]
    assert found["retention_days"] == 7
    assert "thousandth" in say("traffic", "log", "--share", "0.12345", fails=True)
    assert say("traffic", "off")["rules"] == []


def test_from_feedback_to_a_dataset_a_trace_and_pairs(say, tmp_path, store):
    assert [e["request_id"] for e in say("traffic", "show")] == ["req_0", "req_1", "req_2"]
    say("traffic", "feedback", "req_0", "--up")
    say("traffic", "feedback", "req_1", "--answer", "King Wen.", "--author", "Ann")
    assert "at least one" in say("traffic", "feedback", "req_2", fails=True)
    made = say("traffic", "harvest")
    assert made["taken"] == {"approved": 1, "corrected": 1}
    assert store.exists(f"datasets/{made['dataset_id']}/manifest.json")
    trace = say("traffic", "trace", "--messages", "--out", str(tmp_path / "t.jsonl"), "--since", "2026-03-01T12:00:01")
    entries = [TraceEntry.model_validate_json(line) for line in (tmp_path / "t.jsonl").read_bytes().splitlines()]
    assert trace["requests"] == len(entries) == 2
    assert entries[0].messages[0].content == "Who?"
    assert say("traffic", "preferences")["pairs"] == 1
    assert say("traffic", "delete", "req_1")["still_in"] == [made["harvest_id"], trace["trace_id"]]


def test_a_comparison(say, tmp_path, engine_server):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('One?\n\n[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two?"}]\n')
    found = say("compare", "run", "small", "other", "--prompts", str(prompts))
    # The stand-in says the same for all models: nothing to vote on, and said so.
    assert (found["comparison"]["prompts"], found["comparison"]["same"], found["standings"]) == (2, 2, [])
    assert {len(body["messages"]) for body in engine_server.bodies} == {1, 2}
    comparison_id = found["comparison"]["comparison_id"]
    assert [c["comparison_id"] for c in say("compare", "list")] == [comparison_id]
    assert say("compare", "results", comparison_id) == found
    assert say("compare", "pages", comparison_id)["vote"].endswith(f"/compare/vote?comparison={comparison_id}")
    logged_ones = say("compare", "run", "small", "other", "--traffic", "small")
    assert logged_ones["comparison"]["prompts"] == 3
    assert "give one of" in say("compare", "run", "small", "other", fails=True)
