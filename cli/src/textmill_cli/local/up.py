"""Running the stack in this process, or in one of its own; finding it; ending it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from textmill.errors import Transient
from textmill_cli.local.process import process_alive, wait_gone
from textmill_cli.local.stack import Stack
from textmill_cli.settings import SERVICES, CliSettings


@dataclass(frozen=True)
class ProcessState:
    """One row of the table of addresses. ``ready`` is what /readyz said, or why there is no answer."""

    name: str
    pid: int
    url: str
    log: str
    alive: bool
    ready: bool
    detail: str


def supervisor_pid(settings: CliSettings) -> int | None:
    """The process id of the ``up`` that has this home folder, if it lives."""
    try:
        pid = int(json.loads(settings.state_file.read_text())["supervisor"])
    except (OSError, ValueError, KeyError):
        return None
    return pid if process_alive(pid) else None


def states(settings: CliSettings) -> list[ProcessState]:
    """What ``up`` runs and how it is."""
    try:
        processes: dict[str, Any] = json.loads(settings.state_file.read_text())["processes"]
    except (OSError, ValueError, KeyError):
        return []
    return [_look_at(name, process) for name, process in processes.items()]


def _look_at(name: str, process: dict[str, Any]) -> ProcessState:
    alive = process_alive(process["pid"])
    ready, detail = alive, "" if alive else "not running"
    if alive and name in SERVICES:
        ready, detail = _ask_ready(process["url"])
    return ProcessState(name, process["pid"], process["url"], process["log"], alive, ready, detail)


def _ask_ready(url: str) -> tuple[bool, str]:
    try:
        answer = urllib3.request("GET", f"{url}/readyz", timeout=3.0, retries=False)
        checks = json.loads(answer.data).get("checks", {})
    except (urllib3.exceptions.HTTPError, ValueError):
        return False, "starting"
    return answer.status == 200, "; ".join(f"{k}: {v}" for k, v in checks.items() if v != "ok")


def run_here(settings: CliSettings, tell: Callable[[str], None], on_ready: Callable[[], None]) -> None:
    """Start everything and watch over it until SIGINT or SIGTERM. Raises ``Conflict`` if it is up already."""
    stack = Stack(settings, tell)
    stack.hold()
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    try:
        stack.start()
        told = False
        next_look = 0.0
        while not ending.is_set():
            stack.watch()
            if not told and time.monotonic() >= next_look:
                next_look = time.monotonic() + 1.0
                told = all_ready(settings)
                if told:
                    on_ready()
            ending.wait(0.2)
    finally:
        tell("stopping")
        stack.stop()


def all_ready(settings: CliSettings) -> bool:
    found = states(settings)
    return len(found) >= len(SERVICES) + 2 and all(state.ready for state in found)


def start_detached(settings: CliSettings) -> int:
    """Start ``textmill up`` as a process of its own; returns its id. Does nothing if it is up."""
    running = supervisor_pid(settings)
    if running is not None:
        return running
    settings.logs.mkdir(parents=True, exist_ok=True)
    with (settings.logs / "up.log").open("ab") as log:
        command = [sys.executable, "-m", "textmill_cli.main", "up"]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "TEXTMILL_CLI_HOME": str(settings.home)},
        )  # fmt: skip
    return process.pid


def wait_ready(settings: CliSettings, timeout_s: float, tell: Callable[[list[ProcessState]], None]) -> None:
    """Until all services are ready. Raises ``Transient`` with what isn't."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = states(settings)
        tell(found)
        if len(found) >= len(SERVICES) + 2 and all(state.ready for state in found):
            return
        if time.monotonic() > deadline:
            late = "; ".join(f"{s.name} ({s.detail}), log {s.log}" for s in found if not s.ready) or "nothing started"
            raise Transient(f"not ready after {timeout_s:.0f} s: {late}; {settings.logs / 'up.log'} may say why")
        time.sleep(0.5)


def stop(settings: CliSettings, timeout_s: float = 60.0) -> bool:
    """End the running ``up``. False if there was none. Raises ``Transient`` if it doesn't end in time."""
    pid = supervisor_pid(settings)
    if pid is None:
        settings.state_file.unlink(missing_ok=True)
        return False
    os.kill(pid, signal.SIGTERM)
    if not wait_gone(pid, timeout_s):
        raise Transient(
            f"textmill up (process {pid}) didn't end in {timeout_s:.0f} s; its log: {settings.logs / 'up.log'}"
        )
    return True


def log_file(settings: CliSettings, name: str) -> Path:
    return settings.logs / f"{name}.log"
