"""A textmill of its own for tests: one home folder, the command line as its users call it, the services' HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

from textmill.store import S3Store
from textmill_cli.local import servers
from textmill_cli.settings import CliSettings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installation:
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> CliSettings:
        return CliSettings(home=self.home)

    def textmill(self, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command; the test reads its output and exit code."""
        return subprocess.run(
            [sys.executable, "-m", "textmill_cli.main", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.environment, "TEXTMILL_CLI_HOME": str(self.home), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def output(self, *arguments: str, timeout_s: float = 600) -> Any:
        """The JSON that a command prints; its failure fails the test with its words."""
        done = self.textmill(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def run_recipe(self, path: Path) -> list[dict[str, Any]]:
        """Submit and follow to the end; the finished jobs in order."""
        done = self.textmill("run", str(path), "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return [json.loads(line) for line in done.stdout.splitlines()]

    def get(self, service: str, path: str) -> bytes:
        answer = urllib3.request("GET", self.settings.urls()[service] + path, retries=False, timeout=30)
        assert answer.status == 200, answer.data
        return answer.data

    @property
    def gateway(self) -> str:
        return self.settings.urls()["inference"] + "/v1"

    def store(self) -> S3Store:
        url = json.loads(self.settings.state_file.read_text())["processes"]["object-store"]["url"]
        return S3Store(url, servers.ACCESS_KEY, servers.SECRET_KEY, "textmill")


@dataclass(frozen=True)
class Tuned:
    """A whole run: its jobs, and the recipe it came from."""

    recipe: dict[str, Any]
    jobs: list[dict[str, Any]]

    @property
    def first_job(self) -> str:
        job_id: str = self.jobs[0]["job"]["job_id"]
        return job_id


def manifest(jobs: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What the job of this kind made."""
    view = next(v for v in jobs if v["job"]["kind"] == kind)
    made: dict[str, Any] = view["result"]["output"]["manifest"]
    return made
