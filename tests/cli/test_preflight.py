"""'textmill preflight' from a recipe to its table, against the real services over HTTP, and what it advises."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from rich.console import Console
from typer.testing import CliRunner

from textmill.bus import MemoryBus
from textmill.contracts.base import new_id
from textmill.contracts.datasets import BudgetSpent, Cost, Counts
from textmill.contracts.jobs import CorpusJob, PreflightJob
from textmill.contracts.preflight import Forecast, Interval, PreflightManifest, ValueCheck
from textmill.contracts.synthesis import Budget
from textmill.errors import BadRequest
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import Pace, Worker
from textmill_cli.fault_llm.plan import Plan, Rates
from textmill_cli.fault_llm.server import FaultServer
from textmill_cli.local.wait import wait_until
from textmill_cli.main import app as cli
from textmill_cli.plan import preflight_of
from textmill_cli.preflight import next_steps, show
from textmill_cli.recipe import load
from textmill_ingest.api import build_app
from textmill_ingest.settings import IngestSettings
from textmill_ingest.worker import handlers
from textmill_synth.preflight import PreflightHandler
from textmill_synth.preflight_api import preflights_router
from textmill_synth.settings import SynthSettings

RECIPE = """\
name: house
sources:
  files: ["*.md"]
synthesis:
  strategies: [summary]
  extractive_fallback: false
  budget:
    prices: {prompt: 1.0, completion: 4.0}
"""


# -- the services ------------------------------------------------------------------------------------------------------


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, 60, "the service")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def working(worker: Worker) -> Iterator[None]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.drain()
        thread.join(60)


@contextmanager
def fault_llm() -> Iterator[str]:
    """A model that summarises what it is shown, on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = FaultServer(Plan(Rates(), 0, 0.0, 0.0))
    try:
        port = asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(60)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Ingest and synth, each with its worker, on one store in memory; the command line is told where they are."""
    store, bus, pace = MemoryStore(), MemoryBus(), Pace(heartbeat_s=0.2, recover_every_s=0.5)
    jobs = Jobs(store, ring=bus.ring, bury=bus.bury)
    with ExitStack() as stack:
        url = stack.enter_context(fault_llm())
        settings = SynthSettings(llm_url=url, response_mode="json", retry_delay_s=0.01)
        synth = create_app("synth", jobs=jobs, kinds=["preflight"], checks={})
        synth.include_router(preflights_router(store, jobs))
        ingest = build_app(store, jobs, IngestSettings().token, 2)
        stack.enter_context(working(Worker(jobs, bus, handlers(IngestSettings().politeness()), "ingest", pace)))
        stack.enter_context(working(Worker(jobs, bus, {"preflight": PreflightHandler(settings)}, "synth", pace)))
        for name, app in (("INGEST", ingest), ("SYNTH", synth)):
            monkeypatch.setenv(f"TEXTMILL_CLI_{name}_URL", stack.enter_context(served(app)))
        monkeypatch.setenv("TEXTMILL_CLI_HOME", str(tmp_path / "home"))
        yield


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    for number in range(12):
        rooms = " ".join(f"In room {room} of house {number} stands a granite table." for room in range(1, 6 + number))
        (folder / f"house-{number}.md").write_text(f"House {number} was built by the harbour. {rooms}\n")
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.usefixtures("installation")
def test_a_recipe_is_tried_and_the_figures_are_shown(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    done = CliRunner().invoke(cli, ["preflight", str(path), "--passages", "6", "--json"])
    assert done.exit_code == 0, done.output
    found = PreflightManifest.model_validate(json.loads(done.stdout))
    assert (found.passages, found.corpus_passages) == (6, 12)
    assert found.counts.requested == 6
    assert found.forecast.calls.expected >= 12
    shown = CliRunner().invoke(cli, ["preflight", str(path), "--passages", "6"])
    assert shown.exit_code == 0, shown.output
    for words in ("6 of 12 passages tried", "the whole corpus", "accepted answers", "summary", "was asked", "next:"):
        assert words in shown.output
    assert "0 calls made" in shown.output, "the second preflight finds all its calls in the ledger"


def test_a_recipe_without_synthesis_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "name: x\nsources:\n  files: ['*.md']\n")
    done = CliRunner().invoke(cli, ["preflight", str(path)], env={"TEXTMILL_CLI_HOME": str(tmp_path / "home")})
    assert done.exit_code == 1
    assert not (tmp_path / "home").exists()
    with pytest.raises(BadRequest, match="'synthesis', and the recipe has none"):
        preflight_of(load(path), [], 8)


def test_the_pilot_has_the_recipes_options_and_asks_the_model_that_is_compared_with(tmp_path: Path) -> None:
    more = "training: {epochs: 1}\ndeployment: {name: house}\nevaluation: {before: little}\n"
    recipe = load(write_recipe(tmp_path, RECIPE + more))
    corpus = preflight_of(recipe, [new_id("doc")], 5)
    (pilot,) = corpus.then
    assert isinstance(corpus, CorpusJob)
    assert isinstance(pilot, PreflightJob)
    assert pilot.corpus_id == corpus.corpus_id
    assert (pilot.passages, pilot.base_model, pilot.strategies) == (5, "little", ("summary",))
    assert pilot.budget.prices.completion == 4.0


# -- what it says ------------------------------------------------------------------------------------------------------


def manifest(**changes: object) -> PreflightManifest:
    figure = Interval(expected=100, low=80, high=120)
    forecast = Forecast(
        confidence=0.9, calls=figure, prompt_tokens=figure, completion_tokens=figure, accepted=figure,
        cost=Interval(expected=1.5), seconds=Interval(expected=90, low=90, high=9000), concurrency=16,
    )  # fmt: skip
    counts = Counts(requested=8, accepted=7, rejected=1, rejected_by_reason={"echo": 1})
    value = ValueCheck(base_model="base", asked=20, known=1, learnable=15, neither=4, unanswered=0)
    values: dict[str, object] = {
        "preflight_id": new_id("pre"), "corpus_id": new_id("cor"), "passages": 8, "concerned": 90,
        "corpus_passages": 100, "counts": counts, "counts_by_strategy": {"qa": counts}, "forecast": forecast,
        "value": value, "known": [], "calls": 24, "calls_reused": 0, "cost": Cost(), **changes,
    }  # fmt: skip
    return PreflightManifest.model_validate(values)


def advice(found: PreflightManifest, budget: Budget | None = None) -> str:
    return "\n".join(next_steps(found, budget or Budget(), Path("r.yaml")))


def test_when_all_is_well_it_says_how_to_go_on() -> None:
    assert advice(manifest()).startswith("textmill run r.yaml")


ADVICE: list[tuple[Callable[[], PreflightManifest], Budget, str]] = [
    (manifest, Budget(max_calls=110), "max_calls = 110 may not be enough: up to 120"),
    (manifest, Budget(max_tokens=239), "max_tokens = 239 may not be enough: up to 240"),
    (
        lambda: manifest(
            counts=Counts(requested=9, accepted=2, rejected=7, rejected_by_reason={"echo": 5, "empty": 2})
        ),
        Budget(),
        "only 2 of 9 answers were accepted, most often for: echo",
    ),
    (
        lambda: manifest(budget_spent=BudgetSpent(calls=3, refused=2, ended_by="max_calls")),
        Budget(max_calls=3),
        "ended the pilot itself",
    ),
]


@pytest.mark.parametrize(("make", "budget", "said"), ADVICE)
def test_what_stands_in_the_way_is_said_first(make: Callable[[], PreflightManifest], budget: Budget, said: str) -> None:
    assert said in advice(make(), budget)


def test_what_is_known_can_be_left_out_and_it_says_how() -> None:
    found = manifest(value=ValueCheck(base_model="b", asked=10, known=4, learnable=6, neither=0, unanswered=0))
    assert f"leave_out_known: {found.preflight_id}" in advice(found)
    assert "leave_out_known" not in advice(manifest())


def test_the_table_shows_every_figure_and_a_question_mark_for_what_is_not_known(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    forecast = manifest().forecast.model_copy(update={"calls": Interval(expected=1234)})
    console = Console(record=True, width=120)
    show(manifest(forecast=forecast, value=None, notes=["the base model x can't be asked"]), load(path), path, console)
    text = console.export_text()
    assert "1,234" in text
    assert "?" in text
    assert "2.5 h" in text
    assert "the base model x can't be asked" in text
