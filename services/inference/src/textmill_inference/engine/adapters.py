"""The LoRA adapters that one engine answers with besides its own model. They outlive the engine's process.

Knows the engine as ``EngineApi``; which adapter belongs to which model name is decided elsewhere.
"""

import logging
import threading

from textmill.contracts.gates import ParityCheck
from textmill.errors import DependencyDown, JobFailed, TextmillError
from textmill_inference.engine.openai_api import EngineApi
from textmill_inference.engine.parity import ParityGate
from textmill_inference.engine.port import ModelFolder

log = logging.getLogger(__name__)


class Adapters:
    """``knows`` is read by the gateway on each request, without a lock."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._wanted: dict[str, ModelFolder] = {}
        self._loaded: frozenset[str] = frozenset()
        self._gates: dict[str, ParityGate] = {}
        self._changing = threading.Lock()

    def knows(self, model: str) -> bool:
        return model in self._loaded

    def load(self, url: str, model: str, folder: ModelFolder) -> ParityCheck | None:
        """Load it and hold it to its probe; what is loaded so comes back after a restart. Twice is once.

        Raises:
            JobFailed: vLLM refuses the adapter, or it doesn't do what the published model did.
            DependencyDown: the engine doesn't answer.
        """
        with self._changing:
            gate = self._gates.setdefault(model, ParityGate(model.partition("@")[0]))
            if model not in self._loaded:
                self._load(url, model, folder, gate)
            self._wanted[model] = folder
            return gate.check_of(folder)

    def unload(self, url: str, model: str) -> None:
        """It needn't have been loaded, and the engine needn't run."""
        with self._changing:
            self._wanted.pop(model, None)
            self._gates.pop(model, None)
            if model in self._loaded:
                self._loaded -= {model}
                self._drop(url, model)

    def lost(self) -> None:
        """The engine's process has ended, and they with it."""
        self._loaded = frozenset()

    def bring_back(self, url: str) -> None:
        """Load into a process that has just started what the one before had. One that fails is left out and logged."""
        with self._changing:
            self._loaded = frozenset()
            for model, folder in self._wanted.items():
                try:
                    self._load(url, model, folder, self._gates[model])
                except TextmillError as exc:
                    log.warning("adapter not back", extra={"engine": self._engine, "adapter": model, "error": str(exc)})

    def _load(self, url: str, model: str, folder: ModelFolder, gate: ParityGate) -> None:
        try:
            EngineApi(url, self._engine).load_adapter(model, folder.path)
            refusal = gate.refusal(folder, EngineApi(url, model))
        except DependencyDown:
            raise
        except TextmillError as exc:
            self._drop(url, model)
            raise JobFailed(f"adapter of {folder.model_id} is not served: {exc}") from exc
        if refusal:
            self._drop(url, model)
            raise JobFailed(
                f"adapter of {folder.model_id} is not served: {refusal}. An adapter that was trained beside quantized "
                "weights (qlora) differs on the 16-bit base: deploy the merged model instead"
            )
        self._loaded |= {model}

    def _drop(self, url: str, model: str) -> None:
        try:
            EngineApi(url, self._engine).unload_adapter(model)
        except TextmillError as exc:
            log.info("adapter not unloaded", extra={"engine": self._engine, "adapter": model, "error": str(exc)})
