"""'textmill deployments' and 'rollback' against the real routes and a real worker, on engines without a process."""

import json
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from tests.inference.rollout.published import ONE, TWO, FakeEngines, publish
from typer.testing import CliRunner

from textmill.bus import MemoryBus
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill.worker import Pace, Worker
from textmill_cli.local.wait import wait_until
from textmill_cli.main import app as cli
from textmill_inference.gateway.ports import Outcome
from textmill_inference.rollout.api import deployment_router
from textmill_inference.rollout.deployments import Deployments


@pytest.fixture
def deployments(monkeypatch, tmp_path) -> Iterator[Deployments]:
    store, bus = MemoryStore(), MemoryBus()
    for model_id in (ONE, TWO):
        publish(store, model_id)
    jobs = Jobs(store, ring=bus.ring, bury=bus.bury)
    made = Deployments(store, tmp_path / "cache", FakeEngines(), "base", {}, settle_s=0)
    app = create_app("inference", jobs=jobs, kinds=("deploy",), checks={})
    app.include_router(deployment_router(made, jobs))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    worker = Worker(jobs, bus, {"deploy": made.deploy}, "inference", Pace(heartbeat_s=0.2, recover_every_s=0.5))
    threads = [threading.Thread(target=target) for target in (server.run, worker.run)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.started, 60, "the service")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    for name in ("INFERENCE", "INGEST", "SYNTH", "TRAINER"):
        monkeypatch.setenv(f"TEXTMILL_CLI_{name}_URL", url)
    yield made
    worker.drain()
    server.should_exit = True
    for thread in threads:
        thread.join(60)
    made.stop()


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_a_rollout_from_the_command_line(deployments):
    run("deployments", "deploy", "tuned", ONE)
    run("deployments", "deploy", "tuned", TWO, "--canary-percent", "10")
    assert "10 %" in run("deployments", "list")
    run("deployments", "adjust", "tuned", "--canary-percent", "50")
    for upstream in (deployments.routes()["tuned"].canary, deployments.routes()["tuned"].stable[0]):
        upstream.note(Outcome(500, True, 5, 0.1))
    shown = run("deployments", "show", "tuned").splitlines()
    assert [line.split() for line in shown[1:3]] == [
        ["stable", ONE, "yes", "0", "1", "1"],
        ["canary", TWO, "yes", "0", "1", "1"],
    ]
    shown = run("deployments", "promote", "tuned")
    assert f"before: {ONE}" in shown
    assert f"last canary: {TWO} promoted" in shown
    run("rollback", "tuned")
    assert json.loads(run("deployments", "show", "tuned", "--json"))["deployment"]["model_id"] == ONE
    run("deployments", "drop", "tuned")
    assert json.loads(run("deployments", "list", "--json")) == []


def test_a_shadow_is_aborted(deployments):
    run("deployments", "deploy", "tuned", ONE)
    run("deployments", "deploy", "tuned", TWO, "--shadow-percent", "5", "--detach")
    wait_until(lambda: deployments.routes()["tuned"].tap is not None, 60, "the shadow")
    assert f"last shadow: {TWO} aborted: by its owner" in run("deployments", "abort", "tuned")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("rollback", "nobody"), "no deployment 'nobody'"),
        (("rollback", "tuned"), "no version to go back to"),
        (("deployments", "promote", "tuned"), "no canary to promote"),
        (("deployments", "adjust", "tuned"), "give --canary-percent or --shadow-percent"),
        (("deployments", "deploy", "tuned", "mdl_1"), "pattern"),
    ],
)
def test_what_makes_no_sense_is_told(deployments, arguments, why):
    run("deployments", "deploy", "tuned", ONE)
    assert why in " ".join(run(*arguments, code=1).split())
