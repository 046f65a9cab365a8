"""Plays the demo and kills processes of its installation with ``kill -9`` at chosen stages, each by its id."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from installation import ROOT, Installation

from textmill.contracts.jobs import JOB_KINDS
from textmill.errors import TextmillError
from textmill_cli.client import Client
from textmill_cli.settings import SERVICE_OF_KIND

CHILDREN = {
    "training": ("trainer", "textmill_trainer.train"),
    "engine": ("inference", "api_server"),
    "engine-core": ("inference", "EngineCore"),
}
"""Victims that a service starts: whose child it is, and what its command line or name holds."""


@dataclass(frozen=True)
class Kill:
    """Kill ``victim`` once the job of kind ``stage`` has run for ``after_s``."""

    victim: str
    stage: str
    after_s: float = 1.0


@dataclass
class Played:
    """How a demo with kills ended."""

    exit_code: int
    output: str
    killed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def play(home: Path, recipe: Path, report: Path, kills: Sequence[Kill], timeout_s: float = 1_800) -> Played:
    """Run ``textmill demo`` in this home folder and carry out the kills. At ``timeout_s`` it and its stack end.

    Synth asks one question at a time: all at once are answered before anything can be killed.
    """
    installed = Installation(home)
    log = home.parent / f"{home.name}-demo.log"
    began = time.monotonic()
    environment = {**os.environ, "TEXTMILL_CLI_HOME": str(home), "TEXTMILL_SYNTH_CONCURRENCY": "1"}
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "textmill_cli.main", "demo", "--recipe", str(recipe), "--out", str(report)],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    killed: dict[str, int] = {}
    waiting = list(kills)
    client = Client(installed.settings)
    seen_at: dict[str, float] = {}
    try:
        while demo.poll() is None and time.monotonic() - began < timeout_s:
            stage = running_stage(client)
            seen_at.setdefault(stage, time.monotonic())
            for kill in list(waiting):
                if kill.stage == stage and time.monotonic() - seen_at[stage] >= kill.after_s:
                    pid = find(installed, kill.victim)
                    if pid is not None:
                        os.kill(pid, signal.SIGKILL)
                        killed[f"{kill.victim}@{stage}"] = pid
                        waiting.remove(kill)
            time.sleep(0.05)
    finally:
        late = demo.poll() is None
        if late:
            demo.kill()
        exit_code = demo.wait()
        if late:
            installed.textmill("down")
    return Played(exit_code, log.read_text(errors="replace"), killed, time.monotonic() - began)


def running_stage(client: Client) -> str:
    """The kind of the job that has a live attempt, as far as the services answer."""
    for kind in reversed(JOB_KINDS):
        try:
            page = client.get(SERVICE_OF_KIND[kind], f"/v1/jobs?kind={kind}")
        except TextmillError:
            continue
        if any(view["state"] == "running" for view in page["items"]):
            return kind
    return ""


def find(installed: Installation, victim: str) -> int | None:
    """The process id of a service, server, the supervisor, or a service's child."""
    try:
        state = json.loads(installed.settings.state_file.read_text())
        if victim == "supervisor":
            return int(state["supervisor"])
        if victim not in CHILDREN:
            return int(state["processes"][victim]["pid"])
        parent, word = CHILDREN[victim]
        for child in psutil.Process(int(state["processes"][parent]["pid"])).children(recursive=True):
            if word in " ".join(child.cmdline()) or word in child.name():
                return child.pid
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return None
