"""The compose file, up: the main job through its containers, a service killed under it, and nothing left behind.

The images of others are swapped for ours (``compose.*.yml``), and a server that answers from the passage plays
the engine. All else is what a user starts. The tests build on each other, in this order.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_engine import Project
from container_images import UID

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
PORTS = {"ingest": 8101, "synth": 8102, "gateway": 8100}
ASK = """
import json, urllib.error, urllib.request
request = urllib.request.Request("http://{host}{path}", headers={{"Authorization": "Bearer {token}"}})
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(json.dumps([answer.status, json.loads(answer.read())]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.loads(error.read())]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""
LOOK_INSIDE = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
def can_write(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True
print(json.dumps({
    "uids": status["Uid"].split(), "capabilities": int(status["CapEff"], 16), "locked": status["NoNewPrivs"].strip(),
    "memory_mb": int(status["VmRSS"].split()[0]) // 1024, "command": open("/proc/1/cmdline").read().split("\\0"),
    "written": [p for p in ("/x", "/opt/textmill/x", "/etc/x", "/scratch/x", "/tmp/x") if can_write(p)],
}))
"""


def ask(system: Project, service: str, path: str, token: str = "", host: str = "") -> tuple[int, Any]:
    """GET from inside the service's container: it is published nowhere."""
    host = host or f"127.0.0.1:{PORTS[service]}"
    status, body = system.python(service, ASK.format(host=host, path=path, token=token))
    return status, body


def until(happened: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what} didn't happen within {timeout_s:.0f} s"
        time.sleep(0.5)


def ready(system: Project, service: str) -> bool:
    try:
        return ask(system, service, "/readyz")[0] == 200
    except AssertionError:
        return False  # it is being restarted


def setting(env_file: Path, name: str) -> str:
    return [line.partition("=")[2] for line in env_file.read_text().splitlines() if line.startswith(f"{name}=")][-1]


def textmill(system: Project, *arguments: str, timeout_s: float = 300) -> str:
    return system.compose("--profile", "tools", "run", "--rm", "-T", "cli", *arguments, timeout_s=timeout_s)


def states(output: str) -> list[tuple[str, str]]:
    return [(view["job"]["kind"], view["state"]) for view in map(json.loads, output.splitlines())]


def test_every_service_becomes_ready(system: Project, measured: dict[str, dict[str, float]]) -> None:
    began = time.monotonic()
    for service in PORTS:
        until(lambda service=service: ready(system, service), f"{service} ready")
        measured.setdefault(service, {})["ready_s"] = round(time.monotonic() - began, 1)


@pytest.mark.parametrize("service", PORTS)
def test_it_runs_as_process_one_without_rights_on_a_read_only_root(
    service: str, system: Project, measured: dict[str, dict[str, float]]
) -> None:
    found = system.python(service, LOOK_INSIDE)
    measured.setdefault(service, {})["memory_mb"] = found["memory_mb"]
    assert found["uids"] == [str(UID)] * 4
    assert found["capabilities"] == 0
    assert found["locked"] == "1"
    assert found["written"] == ["/scratch/x", "/tmp/x"]
    assert any("textmill-" in word for word in found["command"])


def test_the_gateway_alone_is_published_and_asks_for_the_key(system: Project, env_file: Path) -> None:
    url = f"http://127.0.0.1:{setting(env_file, 'TEXTMILL_GATEWAY_PORT')}/v1/models"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    assert refused.value.code == 401
    refused.value.close()
    key = {"Authorization": f"Bearer {setting(env_file, 'TEXTMILL_API_KEY')}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=key), timeout=10) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["fault-llm"]
    published = {
        name: [key for key, bound in (found["NetworkSettings"]["Ports"] or {}).items() if bound]
        for name in ("kafka", "object-store", "ingest", "synth", "engine", "gateway")
        for found in [system.engine.inspect("container", system.container(name))]
    }
    assert {name for name, ports in published.items() if ports} == {"gateway"}


def test_the_control_routes_ask_for_the_token(system: Project) -> None:
    for service in PORTS:
        assert ask(system, service, "/v1/jobs")[0] == 401


def test_a_recipe_runs_and_outlives_the_loss_of_synth(system: Project, env_file: Path) -> None:
    """Killed at work that it can't finish, as its LLM is away. The second attempt does it; all records are counted."""
    token, llm = setting(env_file, "TEXTMILL_TOKEN"), system.container("engine")
    system.engine.run("stop", "-t", "5", llm)
    job_id = json.loads(textmill(system, "run", "/recipes/recipe.yaml", "--detach", "--json"))["job"]["job_id"]

    def at_work() -> bool:
        _, page = ask(system, "synth", "/v1/jobs?kind=synth", token)
        return [(view["state"], view["attempts"]) for view in page["items"]] == [("running", 1)]

    until(at_work, "synth at work")
    system.compose("kill", "-s", "SIGKILL", "synth")
    system.engine.run("start", llm)
    system.compose("start", "synth")
    until(lambda: ready(system, "synth"), "synth ready again")
    ended = textmill(system, "follow", job_id, "--json")
    assert states(ended) == [("corpus", "succeeded"), ("synth", "succeeded")]
    synth = json.loads(ended.splitlines()[-1])
    assert synth["attempts"] == 2
    counts = synth["result"]["output"]["manifest"]["counts"]
    assert counts["requested"] == counts["accepted"] + counts["rejected"] + counts["dead_lettered"]
    assert counts["accepted"] > 0
    assert counts["dead_lettered"] == 0
    _, asked = ask(system, "synth", "/stats", host="engine:8100")
    assert asked["outcomes"]["answered"] >= 48  # sixteen texts, three questions each


def test_a_service_ends_by_itself_when_it_is_told_to(system: Project) -> None:
    """Also while it waits for a store that is gone: process 1 gets no signal that it has no handler for."""
    container = system.container("ingest")
    system.engine.run("stop", "-t", "40", container)
    assert system.engine.inspect("container", container)["State"]["ExitCode"] == 0
    system.engine.run("stop", "-t", "5", system.container("object-store"))
    waits, told = "waiting for the object store", system.engine.logs(container)
    system.engine.run("start", container)
    until(lambda: waits in system.engine.logs(container).removeprefix(told), "ingest waiting for its store")
    system.engine.run("stop", "-t", "40", container)
    assert system.engine.inspect("container", container)["State"]["ExitCode"] == 0


def test_down_leaves_nothing_behind(system: Project) -> None:
    system.compose("down", "-v", "-t", "5")
    for listing in (["ps", "-a", "--format", "{{.Names}}"], ["volume", "ls", "-q"]):
        assert system.name not in system.engine.run(*listing)
    assert system.name not in system.engine.run("network", "ls", "--format", "{{.Name}}")
