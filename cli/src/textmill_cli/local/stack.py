"""The whole of textmill on one machine: what runs, with which environment, in which order.

The services are the same as on a cluster; only their addresses differ. Watches them, and starts again what died.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from textmill.errors import Conflict, TextmillError
from textmill_cli.local import servers
from textmill_cli.local.ports import remembered
from textmill_cli.local.process import Child, command_of, wait_gone
from textmill_cli.settings import DEFAULT_PORTS, SERVICES, CliSettings

log = logging.getLogger(__name__)
_START_AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_STEADY_S = 60.0


def base_model_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "textmill" / "models" / "smollm2-135m-instruct"


@dataclass
class _Watched:
    child: Child
    url: str
    started_at: float = 0.0
    deaths: int = 0
    start_at: float = 0.0


@dataclass
class Stack:
    """One per home folder; ``hold`` refuses a second."""

    settings: CliSettings
    tell: Callable[[str], None] = lambda line: None
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _lock: IO[str] | None = None

    def hold(self) -> None:
        """Raises ``Conflict`` if another supervisor has this home folder."""
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self._lock = (self.settings.home / "up.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"textmill is up already in {self.settings.home.resolve()}") from exc

    def start(self) -> None:
        """Start everything; returns at once, with the services on their way."""
        self._await_predecessors()
        ports = remembered(self.settings.home / "ports.json", DEFAULT_PORTS)
        logs = self.settings.logs
        store = servers.object_store(self.settings.home / "objects", ports["object-store"], logs / "object-store.log")
        self._add(store, f"http://127.0.0.1:{ports['object-store']}")
        self._add(servers.broker(ports["broker"], logs / "broker.log"), f"127.0.0.1:{ports['broker']}")
        self._make_base_model()
        environment = self._environment(ports)
        for name in SERVICES:
            command = [sys.executable, "-m", f"textmill_{name}.main"]
            self._add(Child(name, command, logs / f"{name}.log", environment), f"http://127.0.0.1:{ports[name]}")

    def watch(self) -> None:
        """Start again what has died; call a few times a second."""
        now = time.monotonic()
        changed = False
        for name, watched in self._watched.items():
            if watched.child.alive():
                continue
            if watched.start_at == 0.0:
                lived_s = now - watched.started_at
                watched.deaths = 0 if lived_s > _STEADY_S else watched.deaths
                watched.start_at = now + _START_AGAIN_S[min(watched.deaths, len(_START_AGAIN_S) - 1)]
                watched.deaths += 1
                self.tell(f"{name} ended after {lived_s:.0f} s; starting it again (its log: {watched.child.log_file})")
            elif now >= watched.start_at:
                self._launch(watched)
                changed = True
        if changed:
            self._write_state()

    def stop(self) -> None:
        """Stop the services together, then the servers they need, and forget the state."""
        self._stop_all(SERVICES, 25)
        self._stop_all(("broker", "object-store"), 10)
        self.settings.state_file.unlink(missing_ok=True)

    def _stop_all(self, names: Sequence[str], grace_s: float) -> None:
        children = [self._watched[name].child for name in names if name in self._watched]
        for child in children:
            child.terminate()
        deadline = time.monotonic() + grace_s
        for child in children:
            child.stop(max(0.5, deadline - time.monotonic()))

    def _await_predecessors(self) -> None:
        """Processes of a supervisor that was killed are ending by themselves: wait for their ports and their data."""
        try:
            old: dict[str, dict[str, Any]] = json.loads(self.settings.state_file.read_text())["processes"]
        except (OSError, ValueError, KeyError):
            return
        for name, process in old.items():
            if command_of(process["pid"]) != process.get("command"):
                continue
            self.tell(f"waiting for the earlier {name} (process {process['pid']}) to end")
            if not wait_gone(process["pid"], 25):
                os.kill(process["pid"], signal.SIGKILL)
                wait_gone(process["pid"], 5)

    def _add(self, child: Child, url: str) -> None:
        self._watched[child.name] = _Watched(child, url)
        self._launch(self._watched[child.name])
        self._write_state()

    @staticmethod
    def _launch(watched: _Watched) -> None:
        watched.child.start()
        watched.started_at, watched.start_at = time.monotonic(), 0.0

    def _write_state(self) -> None:
        processes = {
            name: {"pid": w.child.pid, "url": w.url, "log": str(w.child.log_file), "command": list(w.child.command)}
            for name, w in self._watched.items()
        }
        state = {"supervisor": os.getpid(), "processes": processes}
        partial = self.settings.state_file.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=1))
        partial.replace(self.settings.state_file)

    def _make_base_model(self) -> None:
        """The small model comes as GGUF in a wheel; vLLM and the trainer want safetensors. Done once, some 20 s."""
        folder = base_model_folder()
        if (folder / "config.json").exists():
            return
        self.tell(f"preparing the base model in {folder} (once)")
        log_file = self.settings.logs / "base-model.log"
        with log_file.open("ab") as output:
            command = [sys.executable, "-m", "textmill_trainer.base_model", str(folder)]
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise TextmillError(f"the base model couldn't be prepared; {log_file} says why")

    def _environment(self, ports: Mapping[str, int]) -> dict[str, str]:
        gateway = f"http://127.0.0.1:{ports['inference']}/v1"
        home = self.settings.home.resolve()
        return {
            **servers.store_environment(ports["object-store"]),
            **servers.bus_environment(ports["broker"]),
            **{f"TEXTMILL_{name.upper()}_PORT": str(ports[name]) for name in SERVICES},
            "TEXTMILL_SYNTH_LLM_URL": gateway,
            "TEXTMILL_SYNTH_RESPONSE_MODE": "text",  # the small model loops under a JSON schema
            "TEXTMILL_TRAINER_WORK_FOLDER": str(home / "training"),
            "TEXTMILL_TRAINER_BASE_MODEL": str(base_model_folder()),
            "TEXTMILL_INFERENCE_CACHE_DIR": str(home / "models"),
            "TEXTMILL_INFERENCE_BASE_MODEL": str(base_model_folder()),
            "TEXTMILL_INFERENCE_GATEWAY_URL": gateway,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
