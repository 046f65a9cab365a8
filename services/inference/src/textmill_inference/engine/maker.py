"""Makes the engines of this machine, which take turns at starting."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from textmill_inference.engine.launcher import Care
from textmill_inference.engine.port import Engine
from textmill_inference.engine.supervisor import LocalEngine
from textmill_inference.engine.vllm_launcher import VllmLauncher


class EngineMaker(Protocol):
    """What the deployments ask for when they need an engine."""

    def make(self, name: str, label: str) -> Engine:
        """An engine that answers to ``name``, not started. ``label`` tells it from others of that name."""
        ...

    def no_room(self, folder: Path) -> str:
        """Why one more engine with this model doesn't fit; empty if it does."""
        ...


@dataclass(frozen=True)
class VllmEngines:
    """vLLM as child processes. The engine of ``host`` takes LoRA adapters, if any are allowed."""

    launcher: VllmLauncher
    care: Care
    logs: Path
    host: str
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))

    def make(self, name: str, label: str) -> Engine:
        launcher = self.launcher
        if name == self.host and launcher.options.max_adapters:
            launcher = replace(launcher, adapters=True)
        log_path = self.logs / f"engine-{label.replace('#', '-')}.log"
        return LocalEngine(name, launcher, log_path, self.care, self.turn, label)

    def no_room(self, folder: Path) -> str:
        return self.launcher.no_room(folder)
