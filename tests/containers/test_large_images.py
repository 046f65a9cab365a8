"""The images with torch in them, and with them the whole compose file: a recipe trains a model and serves it.

They are gigabytes and take minutes, so they are built only with ``TEXTMILL_TEST_CONTAINERS_LARGE=1``
(``make test-containers-large``). torch comes from a wheel in ``deploy/images/wheels`` or from ``TEXTMILL_TORCH_INDEX``.
Broker and store are ours, as in the other container tests; all else is what a user starts.
"""

import json
import os
import secrets
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from container_engine import BASE, ROOT, ContainerEngine, Project, make_env
from container_images import LARGE, UID, Image
from test_images import LOOK_INSIDE as LOOK_INTO_IMAGE
from test_images import READ_ONLY
from test_system import LOOK_INSIDE, ask, setting, states, textmill, until

from textmill_cli.local.ports import any_free

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.environ.get("TEXTMILL_TEST_CONTAINERS_LARGE") != "1",
        reason="images of gigabytes are built with TEXTMILL_TEST_CONTAINERS_LARGE=1 (make test-containers-large)",
    ),
]
STARTED = ("kafka", "object-store", "demo-model", "ingest", "synth", "trainer", "engine", "gateway")
PORTS = {"trainer": 8103, "engine": 8100}
BASE_NAME, TUNED = "smollm2-135m", "three-hexagrams"
PATIENCE_S = 900
"""Of a model that is loaded on cores that others use too."""


@pytest.fixture(scope="module")
def large_images(engine: ContainerEngine, measured: dict[str, dict[str, float]]) -> tuple[Image, ...]:
    for image in LARGE:
        began = time.monotonic()
        engine.build(image.dockerfile, image.tag, image.target, timeout_s=1800)
        measured.setdefault(image.name, {})["build_s"] = round(time.monotonic() - began, 1)
    return LARGE


@pytest.fixture(scope="module")
def large_recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the example's texts, copied into records without an LLM, one epoch, a name to be served under."""
    folder = tmp_path_factory.mktemp("large-recipes")
    example = ROOT / "examples" / "zhouyi"
    for file in (*example.glob("en/0[1-3]-*.md"), example / "questions.en.yaml"):
        (folder / file.name).write_bytes(file.read_bytes())
    recipe = {
        "name": TUNED,
        "sources": {"files": ["*.md"]},
        "split": {"method": "blank_lines"},
        "synthesis": {"strategies": ["passage"], "questions": ["questions.en.yaml"]},
        "training": {"epochs": 1, "rank": 8, "evaluations": 1},
        "deployment": {"name": TUNED},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def large_env(tmp_path_factory: pytest.TempPathFactory, large_recipes: Path) -> Path:
    return make_env(
        tmp_path_factory.mktemp("large-env") / ".env",
        TEXTMILL_RECIPES=large_recipes,
        TEXTMILL_GATEWAY_PORT=any_free(),
        TEXTMILL_BASE_IMAGE=BASE,
    )


@pytest.fixture(scope="module")
def whole(
    engine: ContainerEngine, images: tuple[Image, ...], large_images: tuple[Image, ...], large_env: Path
) -> Iterator[Project]:
    """Up, not yet ready; taken down at the end, whatever happened."""
    files = (ROOT / "docker-compose.yml", ROOT / "tests" / "containers" / "compose.override.yml")
    project = Project(engine, f"textmill-large-{secrets.token_hex(3)}", files, large_env)
    try:
        project.compose("up", "-d", *STARTED, timeout_s=PATIENCE_S)
        yield project
    finally:
        project.compose("down", "-v", "-t", "10", check=False)


def complete(env_file: Path, model: str) -> dict[str, Any]:
    """A chat completion from the published gateway."""
    body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{setting(env_file, 'TEXTMILL_GATEWAY_PORT')}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {setting(env_file, 'TEXTMILL_API_KEY')}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def follow(system: Project, job_id: str) -> str:
    """To the end of the last job. A service that trains on all cores may not answer for a while; then again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return textmill(system, "follow", job_id, "--json", timeout_s=PATIENCE_S)
        except AssertionError as error:
            if "Transient" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(2)


def memory_mb(system: Project, service: str) -> int:
    """Of all processes in the service's container, shared pages counted once each time."""
    program = (
        "import json, re, pathlib; print(json.dumps(sum(int(kb) for f in pathlib.Path('/proc').glob('[0-9]*/status')"
        " for kb in re.findall(r'VmRSS:\\s+(\\d+)', f.read_text())) // 1024))"
    )
    return int(system.python(service, program))


@pytest.mark.parametrize("image", LARGE, ids=lambda image: image.name)
def test_inside_there_is_nothing_to_build_with_and_nowhere_to_write(
    image: Image, large_images: tuple[Image, ...], engine: ContainerEngine, measured: dict[str, dict[str, float]]
) -> None:
    added = engine.inspect("image", image.tag)["Size"] - engine.inspect("image", BASE)["Size"]
    measured.setdefault(image.name, {})["added_mb"] = round(added / 1e6)
    inside = ("--tmpfs", "/scratch", "--entrypoint", "python3", image.tag, "-c", LOOK_INTO_IMAGE)
    found = json.loads(engine.run("run", *READ_ONLY, *inside))
    assert (found["uid"], found["gid"]) == (UID, UID)
    assert (found["tools"], found["caches"], found["pip"], found["sources"]) == ([], [], [], False)
    assert found["written"] == ["/scratch/x"]


@pytest.mark.parametrize("service", PORTS)
def test_it_becomes_ready_as_process_of_a_fixed_user_on_a_read_only_root(
    service: str, whole: Project, measured: dict[str, dict[str, float]]
) -> None:
    began = time.monotonic()

    def ready() -> bool:
        try:
            return ask(whole, service, "/readyz", host=f"127.0.0.1:{PORTS[service]}")[0] == 200
        except AssertionError:
            return False  # it is being started

    until(ready, f"{service} ready", PATIENCE_S)
    measured.setdefault(service, {}).update(
        ready_s=round(time.monotonic() - began, 1), memory_mb=memory_mb(whole, service)
    )
    assert ask(whole, service, "/healthz", host=f"127.0.0.1:{PORTS[service]}")[0] == 200
    found = whole.python(service, LOOK_INSIDE)
    assert found["uids"] == [str(UID)] * 4
    assert (found["capabilities"], found["locked"]) == (0, "1")
    assert found["written"] == ["/scratch/x", "/tmp/x"]


def test_the_base_model_answers_through_the_gateway(whole: Project, large_env: Path) -> None:
    answer = complete(large_env, BASE_NAME)
    assert answer["model"] == BASE_NAME
    assert 0 < answer["usage"]["completion_tokens"] <= 8
    assert answer["choices"][0]["message"]["content"]


def test_a_recipe_is_trained_and_its_model_answers(whole: Project, large_env: Path) -> None:
    detached = textmill(whole, "run", "/recipes/recipe.yaml", "--detach", "--json", timeout_s=PATIENCE_S)
    ended = follow(whole, json.loads(detached)["job"]["job_id"])
    assert states(ended) == [(kind, "succeeded") for kind in ("corpus", "synth", "train", "deploy")]
    answer = complete(large_env, TUNED)
    assert answer["model"] == TUNED
    assert answer["choices"][0]["message"]["content"]


def test_it_ends_by_itself_when_it_is_told_to(whole: Project) -> None:
    for service in PORTS:
        whole.engine.run("stop", "-t", "60", whole.container(service))
        assert whole.engine.inspect("container", whole.container(service))["State"]["ExitCode"] == 0, service
