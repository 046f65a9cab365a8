"""The command line and environment that start vLLM on this machine, with or without a GPU. Imports no vLLM."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MODULE = "vllm.entrypoints.openai.api_server"
"""``vllm serve`` looks up a distribution called "vllm", which the CPU build isn't; the module works in both."""
_CPU_MODULE = "textmill_inference.engine.vllm_child"


@dataclass(frozen=True)
class VllmLauncher:
    """``extra`` are more vLLM arguments; they come last and so win."""

    max_model_len: int
    kv_cache_gib: int
    extra: tuple[str, ...] = ()

    def command(self, folder: Path, name: str, port: int) -> Sequence[str]:
        module, eager = (_MODULE, []) if has_gpu() else (_CPU_MODULE, ["--enforce-eager"])
        return [
            *(sys.executable, "-m", module),
            *("--model", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "bfloat16", "--max-model-len", str(self.max_model_len), "--disable-uvicorn-access-log"),
            *eager,
            *self.extra,
        ]

    def environment(self) -> Mapping[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("TEXTMILL_")}
        # VLLM_SERVER_DEV_MODE opens the routes that swap weights, and asks for no key: hence the loopback address.
        env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_SERVER_DEV_MODE": "1"}
        if not has_gpu():
            env |= _cpu_environment(self.kv_cache_gib)
        return env


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


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
