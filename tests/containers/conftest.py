"""One build and one ``up`` for all container tests. What was measured on the way is printed at the end."""

import json
import secrets
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from container_engine import BASE, REQUIRED, ROOT, ContainerEngine, Project, find_engine, make_env
from container_images import BUILT, Image

from textmill_cli.local.ports import any_free

STARTED = ("kafka", "object-store", "ingest", "synth", "engine", "gateway")
"""The whole system but the trainer and the consoles, whose images are gigabytes, or others'."""
_MEASURED: dict[str, dict[str, float]] = {}


@pytest.fixture(scope="session")
def measured() -> dict[str, dict[str, float]]:
    """Image name to figures; printed when the tests are over."""
    return _MEASURED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _MEASURED:
        terminalreporter.write_line("containers: " + json.dumps(_MEASURED))


@pytest.fixture(scope="session")
def engine() -> ContainerEngine:
    found = find_engine()
    if found is None:
        why = f"neither docker nor podman runs {BASE!r} here"
        if REQUIRED:
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture(scope="session")
def images(engine: ContainerEngine, measured: dict[str, dict[str, float]]) -> tuple[Image, ...]:
    """All images that are small enough to be built in a test, built."""
    for image in BUILT:
        began = time.monotonic()
        engine.build(image.dockerfile, image.tag)
        measured.setdefault(image.name, {})["build_s"] = round(time.monotonic() - began, 1)
    return BUILT


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen of the example's texts and a recipe that ends with the dataset: readable by a container's user."""
    example, folder = ROOT / "examples" / "zhouyi", tmp_path_factory.mktemp("recipes")
    shutil.copytree(example / "en", folder / "en")
    shutil.copy(example / "questions.en.yaml", folder)
    recipe = yaml.safe_load((example / "recipe.yaml").read_text())
    for section in ("training", "deployment", "evaluation", "loadtest"):
        recipe.pop(section)
    recipe["sources"] = {"files": ["en/0[1-9]-*.md", "en/1[0-6]-*.md"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def env_file(tmp_path_factory: pytest.TempPathFactory, recipes: Path) -> Path:
    return make_env(
        tmp_path_factory.mktemp("env") / ".env",
        TEXTMILL_RECIPES=recipes,
        TEXTMILL_GATEWAY_PORT=any_free(),
        TEXTMILL_BASE_IMAGE=BASE,
        TEXTMILL_SYNTH_LLM_MODEL="fault-llm",
    )


@pytest.fixture(scope="session")
def project(engine: ContainerEngine, images: tuple[Image, ...], env_file: Path) -> Project:
    here = ROOT / "tests" / "containers"
    files = (ROOT / "docker-compose.yml", here / "compose.override.yml", here / "compose.llm.yml")
    return Project(engine, f"textmill-test-{secrets.token_hex(3)}", files, env_file)


# -- what pytest-docker asks for ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker_compose_command(project: Project) -> str:
    return " ".join(project.command)


@pytest.fixture(scope="session")
def docker_compose_file(project: Project) -> list[str]:
    return [str(file) for file in project.files]


@pytest.fixture(scope="session")
def docker_compose_project_name(project: Project) -> str:
    return project.name


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return [f"up -d {' '.join(STARTED)}"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down -v -t 5"]


@pytest.fixture(scope="session")
def system(project: Project, docker_services: object) -> Project:
    """Everything of ``STARTED``, up; not yet ready."""
    return project
