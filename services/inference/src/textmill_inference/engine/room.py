"""Does one more engine fit on this machine? Asked before one is started beside another."""

import subprocess
from pathlib import Path

_GIB = 1024**3
_PROCESS_GIB = 3.0
"""What an engine on a CPU takes besides weights and cache: interpreter, torch, vLLM, activations."""
_CGROUP = Path("/sys/fs/cgroup")


def no_room_in_memory(folder: Path, kv_cache_gib: float) -> str:
    """Why an engine with this model doesn't fit into main memory; empty if it does."""
    needed = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / _GIB + kv_cache_gib + _PROCESS_GIB
    free = _free_memory_gib()
    if free >= needed:
        return ""
    return f"a second engine needs about {needed:.1f} GiB of memory, {free:.1f} are free"


def no_room_on_gpus(share: float, gpus: int) -> str:
    """Why an engine that takes ``share`` of each of the first ``gpus`` GPUs doesn't fit; empty if it does."""
    try:
        found = _gpu_memory_mib()[:gpus]
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        return f"nvidia-smi doesn't tell how much GPU memory is free: {exc}"
    for index, (free, total) in enumerate(found):
        if free < share * total:
            return (
                f"a second engine needs {share * total / 1024:.1f} GiB of GPU {index}, {free / 1024:.1f} are free: "
                "a memory share of at most 0.45 leaves room for two"
            )
    return "" if len(found) == gpus else f"{gpus} GPUs are needed, {len(found)} are there"


def _free_memory_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(free, _left_in_container()) / _GIB


def _left_in_container() -> float:
    """Cached files count as used there, though the kernel would give them up: they are taken off."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return float("inf")
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        return int(limit) - used
    except (OSError, ValueError):
        return float("inf")


def _gpu_memory_mib() -> list[tuple[float, float]]:
    """Free and total, of each GPU."""
    asked = ["nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
    return [(float(free), float(total)) for free, total in (line.split(",") for line in said.splitlines() if line)]
