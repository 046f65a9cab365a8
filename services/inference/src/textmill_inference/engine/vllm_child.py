"""Starts vLLM's OpenAI server with its imports done twice at once instead of one after the other.

vLLM's engine core is a process of its own that it spawns, so that a start imports torch, transformers and vLLM in the
server, and then all over again in the core: 10 to 15 s each on a slow CPU. Here multiprocessing's fork server begins
its import along with the server's, and the core is forked from it when its time comes. Same code, same processes; a
core that is forked from a process without threads and without a device starts as a spawned one does. Not for CUDA,
which does not survive a fork.

Run as ``python -m textmill_inference.engine.vllm_child ARGUMENTS`` with the arguments of ``vllm serve``.
"""

import importlib
import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

_CORE_IMPORTS = [
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.model_executor.model_loader.default_loader",
    "vllm.model_executor.models.llama",
]
"""What a core imports, as far as we know: too few cost time, and unknown ones are skipped."""


def main() -> None:
    multiprocessing.set_forkserver_preload(_CORE_IMPORTS)
    forkserver.ensure_running()
    real = multiprocessing.get_context

    def forked_instead_of_spawned(method: str | None = None) -> BaseContext:
        return real("forkserver" if method == "spawn" else method)

    # vLLM's CPU platform insists on "spawn" and has no setting for this.
    multiprocessing.get_context = forked_instead_of_spawned  # type: ignore[assignment]
    # By name: this package is type-checked and tested where vLLM isn't installed.
    importlib.import_module("vllm.entrypoints.launchers.api_server.entry").main()


if __name__ == "__main__":
    main()
