"""The Dockerfiles and locks without an engine: hadolint, who runs, what starts, and which packages get in."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from container_engine import ROOT
from container_images import IMAGES, ML, UID, WITHOUT_ML, Image

LOCKS = ROOT / "requirements" / "images"
CODE = {
    "ingest": "services/ingest/src",
    "synth": "services/synth/src",
    "gateway": "services/inference/src",
    "cli": "cli/src",
    "trainer": "services/trainer/src",
}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(keyword, rest) in order, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def final_stages(path: Path) -> Iterator[list[tuple[str, str]]]:
    """The stages that become images: those that name a user, and end in what they start."""
    stage: list[tuple[str, str]] = []
    for word, rest in [*instructions(path), ("FROM", "")]:
        if word == "FROM":
            if any(word == "USER" for word, _ in stage):
                yield stage
            stage = []
        stage.append((word, rest))


def locked(name: str) -> dict[str, str]:
    """Package to version."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def ids(image: Image) -> str:
    return image.name


def test_every_dockerfile_is_known_and_hadolint_finds_nothing() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("services", "cli", "deploy")
        for path in (ROOT / folder).rglob("*Dockerfile")
    }
    assert found == {image.dockerfile for image in IMAGES}
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", *sorted(found)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES, ids=ids)
def test_the_base_is_an_argument_and_no_image_is_taken_without_a_version(image: Image) -> None:
    found = instructions(ROOT / image.dockerfile)
    arguments = dict(
        rest.partition("=")[::2] for word, rest in found[: found.index(("ARG", "VERSION=0.1.0"))] if word == "ARG"
    )
    assert arguments["BASE"] == "python:3.11-slim"
    for value in (arguments[name] for name in ("BASE", "VLLM_IMAGE") if name in arguments):
        assert re.search(r":v?\d", value), value
    stages = {rest.rpartition(" AS ")[2] for word, rest in found if word == "FROM"}
    for word, rest in found:
        if word == "FROM":
            source = rest.partition(" ")[0]
            assert source.startswith("${") or source == "scratch" or source in stages, source


@pytest.mark.parametrize("image", IMAGES, ids=ids)
def test_a_fixed_user_starts_the_process_itself(image: Image) -> None:
    stages = list(final_stages(ROOT / image.dockerfile))
    assert stages
    for stage in stages:
        words = dict(stage)
        assert words["USER"] == f"{UID}:{UID}"
        assert all(isinstance(word, str) for word in json.loads(words["ENTRYPOINT"]))
        assert "HEALTHCHECK" in words
        assert "org.opencontainers.image.title" in words["LABEL"]


@pytest.mark.parametrize("image", IMAGES, ids=ids)
def test_every_package_is_locked_with_hashes_at_the_version_that_is_tested(image: Image) -> None:
    tested = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "requirements/local.txt").read_text(), re.MULTILINE))
    versions = {normal(name): version for name, version in tested.items()}
    found = locked(image.lock)
    text = (LOCKS / f"{image.lock}.txt").read_text()
    assert found
    assert {name: v for name, v in found.items() if versions.get(normal(name), v) != v} == {}
    assert len(re.findall(r"==\S+ \\\n    --hash=sha256:", text)) == len(found)


@pytest.mark.parametrize("image", IMAGES, ids=ids)
def test_what_a_service_asks_for_is_locked_for_it(image: Image) -> None:
    """A new dependency in a pyproject.toml must get into the image: ``make lock``."""
    done = subprocess.run(
        [sys.executable, "requirements/lock.py", "--asked", image.lock], cwd=ROOT, capture_output=True, text=True,
        timeout=30, check=True,
    )  # fmt: skip
    asked = {normal(name) for name in done.stdout.split()}
    assert asked - {normal(name) for name in locked(image.lock)} - {"torch"} == set()


@pytest.mark.parametrize("name", WITHOUT_ML)
def test_no_machine_learning_library_gets_in(name: str) -> None:
    assert {normal(package) for package in locked(name)} & ML == set()


@pytest.mark.parametrize("image", IMAGES, ids=ids)
def test_pip_leaves_no_cache_and_checks_hashes(image: Image) -> None:
    for word, rest in instructions(ROOT / image.dockerfile):
        if word == "RUN" and " install " in rest and "pip" in rest:
            assert "--mount=type=cache,target=/root/.cache/pip" in rest or "--no-cache" in rest
            assert "--require-hashes" in rest or "--no-index" in rest


def imported(folder: Path) -> set[str]:
    """The top-level names that the modules below import as they are imported, not only when a function is called."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize(("name", "folder"), CODE.items())
def test_all_that_the_code_imports_is_in_the_image(name: str, folder: str) -> None:
    """Here everything is installed, so that a dependency that is not declared is only missed in the image."""
    there = {normal(package) for package in locked(name)} | {"torch"}
    providers = metadata.packages_distributions()
    names = imported(ROOT / "core" / "src") | imported(ROOT / folder)
    strangers = {module for module in names if not module.startswith("textmill")}
    assert {m for m in strangers if not {normal(p) for p in providers.get(m, [m])} & there} == set()
