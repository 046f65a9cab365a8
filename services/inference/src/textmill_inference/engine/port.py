"""What the gateway and the deployments know of an engine, and the engine that somebody else runs.

An engine answers OpenAI's routes at ``url`` for one model name. Where it comes from, only its adapter knows:
``LocalEngine`` (supervisor.py) keeps a child on this machine, ``AttachedEngine`` points at one elsewhere.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from textmill.contracts.gates import ParityCheck
from textmill.errors import BadRequest, DependencyDown
from textmill_inference.engine.openai_api import EngineApi

SwapKind = Literal["started", "unchanged", "in_place", "restarted", "second_engine", "adapter"]
"""How a model came to answer. ``restarted`` made requests wait; the others don't."""


@dataclass(frozen=True)
class ModelFolder:
    """A model as files: safetensors, config, tokenizer, chat template. ``model_id`` is None for the base model."""

    path: Path
    model_id: str | None = None


class Engine(Protocol):
    """One model name and what answers to it. Properties are cheap and safe to read from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str:
        """Without a path and without a slash at the end. Changes when the engine is started anew."""
        ...

    @property
    def ready(self) -> bool:
        """True while the model answers, as far as is known."""
        ...

    @property
    def trouble(self) -> str:
        """Why it isn't ready, for a person; empty when it is."""
        ...

    @property
    def folder(self) -> ModelFolder | None:
        """The model that it serves or is about to serve; None if that is decided elsewhere."""
        ...

    @property
    def parity(self) -> ParityCheck | None:
        """How near it came to the published model that it serves; None if that came without a probe."""
        ...

    def suspect(self) -> None:
        """Somebody saw it fail: look at once. Returns at once."""
        ...

    def knows(self, model: str) -> bool:
        """Whether it answers to this name: its own, or that of an adapter that it has loaded."""
        ...

    def swap(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        """Answer with this model from now on, in the process that runs; returns when it does.

        None if that can't be done: another geometry, not ready, or answers under way that take too long. Nothing has
        changed then. None also if ``stopping`` was set, as ``serve``.

        Raises:
            as ``serve``.
        """
        ...

    def load_adapter(self, model: str, folder: ModelFolder) -> ParityCheck | None:
        """Answer to ``model`` with this LoRA adapter too, also after a restart. Twice is once.

        Raises:
            BadRequest: this engine takes no adapters.
            JobFailed: the adapter can't be served.
            DependencyDown: the engine doesn't answer now.
        """
        ...

    def unload_adapter(self, model: str) -> None:
        """Forget the adapter; answers under way go on. It needn't be there."""
        ...

    def serve(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        """Answer with this model from now on; returns when it does.

        None if ``stopping`` was set first: then the model before it, if there was one, comes back.

        Raises:
            BadRequest: this engine can't be told what to serve.
            JobFailed: the model can't be served; the one before it is back.
        """
        ...

    def stop(self) -> None:
        """End it; returns when no process is left."""
        ...


class AttachedEngine:
    """An engine at a URL, started and replaced by others (a Kubernetes Deployment). Probed at most once a second."""

    folder: ModelFolder | None = None
    parity: ParityCheck | None = None

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self._api = EngineApi(self.url, name)
        self._looked_at = float("-inf")
        self._ready = False
        self._stop = threading.Event()
        self._look = threading.Event()
        threading.Thread(target=self._watch, name=f"engine-{name}", daemon=True).start()

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def trouble(self) -> str:
        return "" if self._ready else f"the engine at {self.url} doesn't answer for model {self.name!r}"

    def suspect(self) -> None:
        self._look.set()

    def knows(self, model: str) -> bool:
        return model == self.name

    def serve(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        raise self._not_ours()

    def swap(self, folder: ModelFolder, stopping: threading.Event) -> SwapKind | None:
        raise self._not_ours()

    def load_adapter(self, model: str, folder: ModelFolder) -> ParityCheck | None:
        raise self._not_ours()

    def unload_adapter(self, model: str) -> None:
        pass

    def _not_ours(self) -> BadRequest:
        return BadRequest(
            f"model {self.name!r} is served by an engine that isn't ours ({self.url}): roll it out where it runs, "
            "or deploy under another name"
        )

    def stop(self) -> None:
        self._stop.set()
        self._look.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            # A full answer once; then the cheap health route, which costs the engine no token.
            try:
                self._ready = self._api.healthy() if self._ready else self._api.answers()
            except DependencyDown:
                self._ready = False
            began = time.monotonic()
            self._look.wait(5.0 if self._ready else 1.0)
            self._look.clear()
            self._stop.wait(max(0.0, 0.2 - (time.monotonic() - began)))
