"""The command line and environment that start vLLM on this machine, with or without a GPU. Imports no vLLM."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from textmill import tracing
from textmill_inference.engine.room import no_room_in_memory, no_room_on_gpus
from textmill_inference.engine.settings import EngineSettings

_MODULE = "vllm.entrypoints.openai.api_server"
"""``vllm serve`` looks up a distribution called "vllm", which the CPU build isn't; the module works in both."""
_CPU_MODULE = "textmill_inference.engine.vllm_child"


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


@dataclass(frozen=True)
class VllmLauncher:
    """``extra`` are more vLLM arguments; they come last and so win. ``adapters``: LoRA adapters can be loaded later."""

    max_model_len: int
    kv_cache_gib: int
    extra: tuple[str, ...] = ()
    options: EngineSettings = field(default_factory=EngineSettings)
    adapters: bool = False
    gpu: bool = field(default_factory=has_gpu)

    def command(self, folder: Path, name: str, port: int) -> Sequence[str]:
        return [
            *(sys.executable, "-m", _MODULE if self.gpu else _CPU_MODULE),
            *("--model", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", self.options.dtype, "--max-model-len", str(self.max_model_len)),
            "--disable-uvicorn-access-log",
            *(self._gpu_arguments() if self.gpu else ("--enforce-eager",)),
            *(("--quantization", self.options.quantization) if self.options.quantization else ()),
            *(self._adapter_arguments() if self.adapters else ()),
            *(("--otlp-traces-endpoint", url) if (url := tracing.traces_url()) else ()),
            *self.extra,
        ]

    def environment(self) -> Mapping[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("TEXTMILL_")}
        # VLLM_SERVER_DEV_MODE opens the routes that swap weights, and asks for no key: hence the loopback address.
        env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
        if tracing.traces_url():
            # vLLM would rather speak gRPC; its spans go where ours go.
            env |= {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "textmill-engine"}
        if self.adapters:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if not self.gpu:
            env |= _cpu_environment(self.kv_cache_gib)
        return env

    def no_room(self, folder: Path) -> str:
        if self.options.second == "always":
            return ""
        if self.options.second == "never":
            return "TEXTMILL_INFERENCE_ENGINE_SECOND says never"
        if self.gpu:
            return no_room_on_gpus(self.options.gpu_memory_share, self.options.tensor_parallel)
        return no_room_in_memory(folder, self.kv_cache_gib)

    def _gpu_arguments(self) -> Sequence[str]:
        options = self.options
        parallel = ("--tensor-parallel-size", str(options.tensor_parallel)) if options.tensor_parallel > 1 else ()
        return [*parallel, "--gpu-memory-utilization", f"{options.gpu_memory_share:g}"]

    def _adapter_arguments(self) -> Sequence[str]:
        options = self.options
        return [
            *("--enable-lora", "--max-loras", str(options.max_adapters)),
            *("--max-lora-rank", str(options.max_adapter_rank)),
        ]


def _cpu_environment(kv_cache_gib: int) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Threads that wait for each other sleep instead of spinning. Spinning gains little on an idle machine and ruins
        # a busy one: 9 tok/s became 180 at 8 streams, beside a training run on the same 2 cores.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # One process less to import everything: the worker runs inside the engine core. 20 s less on 2 cores.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
