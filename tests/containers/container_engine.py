"""Finds what runs containers here, docker or podman, and runs commands with it. Knows nothing of textmill's images."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE = os.environ.get("CONTAINER_BASE", "python:3.11-slim")
"""The image that all of ours are built on; an engine that can pull none is given one that it has."""
REQUIRED = os.environ.get("TEXTMILL_TEST_CONTAINERS") == "required"
"""Without an engine the container tests fail then, instead of being skipped."""


def make_env(file: Path, **settings: object) -> Path:
    """Secrets as a user makes them, and what a test sets besides."""
    subprocess.run(["sh", str(ROOT / "deploy" / "make-env.sh"), str(file)], check=True, capture_output=True)
    with file.open("a") as env:
        env.writelines(f"{name}={value}\n" for name, value in settings.items())
    return file


@dataclass(frozen=True)
class ContainerEngine:
    """``command`` is docker or podman, ``compose`` what reads compose files with it."""

    command: str
    compose: tuple[str, ...]

    def run(self, *arguments: str, timeout_s: float = 120, check: bool = True) -> str:
        """Standard output, stripped. A failure raises ``AssertionError`` with what the engine said."""
        return _run([self.command, *arguments], timeout_s, check)

    def logs(self, container: str) -> str:
        """All that the container wrote since it was made, to standard error too."""
        done = subprocess.run(
            [self.command, "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(kind, "inspect", name))[0]
        return found

    def build(self, dockerfile: str, tag: str, target: str = "", timeout_s: float = 600) -> None:
        """Podman's own format has no health check, hence Docker's. ``target``: the stage; empty for the last."""
        values = {"BASE": BASE, "TORCH_INDEX": os.environ.get("TEXTMILL_TORCH_INDEX", "")} if target else {"BASE": BASE}
        options = [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]
        options += ["--target", target] if target else []
        arguments = ["build", *options, "-f", dockerfile, "-t", tag, "."]
        _run([self.command, *arguments], timeout_s, True, {"BUILDAH_FORMAT": "docker", "DOCKER_BUILDKIT": "1"})


@dataclass(frozen=True)
class Project:
    """One compose project of an engine."""

    engine: ContainerEngine
    name: str
    files: Sequence[Path]
    env_file: Path

    @property
    def command(self) -> list[str]:
        return [*self.engine.compose, "--env-file", str(self.env_file)]

    def compose(self, *arguments: str, timeout_s: float = 180, check: bool = True) -> str:
        files = [word for file in self.files for word in ("-f", str(file))]
        return _run([*self.command, *files, "-p", self.name, *arguments], timeout_s, check)

    def container(self, service: str) -> str:
        """The id of the service's container, running or not."""
        labels = (f"project={self.name}", f"service={service}")
        filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        return self.engine.run("ps", "-a", "-q", "--no-trunc", *filters)

    def python(self, service: str, program: str) -> Any:
        """What a Python program prints inside the service's container, as JSON."""
        return json.loads(self.engine.run("exec", self.container(service), "python3", "-c", program))


def find_engine() -> ContainerEngine | None:
    """Docker before podman; None if neither can run the base image."""
    for command, compose in (("docker", ("docker", "compose")), ("podman", (sys.executable, "-m", "podman_compose"))):
        engine = ContainerEngine(command, compose)
        if shutil.which(command) and _works([*compose, "version"]) and _works([command, "run", "--rm", BASE, "true"]):
            return engine
    return None


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=180, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: Sequence[str], timeout_s: float, check: bool, more: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(more or {})}, capture_output=True, text=True, timeout=timeout_s,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()
