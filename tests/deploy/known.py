"""What the code itself knows: its settings, and the names of the metrics that it and vLLM have."""

import importlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from deploy_tools import ROOT
from pydantic_settings import BaseSettings

SOURCES = sorted(
    path for folder in ("core/src", "services/*/src") for root in ROOT.glob(folder) for path in root.rglob("*.py")
)
_METRIC = re.compile(r'"(textmill_[a-z0-9_]*[a-z0-9])"')
_PROCESS = {
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
    "process_start_time_seconds", "python_gc_collections_total", "up", "scrape_duration_seconds",
}  # fmt: skip
"""Of the client library on Linux, and of Prometheus itself."""
_SUFFIXES = ("", "_total", "_bucket", "_sum", "_count")


def known_settings() -> set[str]:
    """Every environment variable that some settings class of core or of a service reads."""
    modules = [importlib.import_module(_module(path)) for path in SOURCES if path.name == "settings.py"]
    found = {v for m in modules for v in vars(m).values() if isinstance(v, type) and issubclass(v, BaseSettings)}
    return {f"{s.model_config.get('env_prefix', '')}{name.upper()}" for s in found for name in s.model_fields}


@cache
def known_metrics() -> frozenset[str]:
    """Names as Prometheus stores them, with the suffixes of counters and histograms."""
    names = {name for path in SOURCES for name in _METRIC.findall(path.read_text())} - packages() | vllm_metrics()
    return frozenset(name + suffix for name in names for suffix in _SUFFIXES) | _PROCESS


def vllm_metrics() -> set[str]:
    """The names in the source of the vLLM that is installed: what it documents is made from the same lines."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    sources = (Path(spec.origin).parent / "v1" / "metrics").glob("*.py")
    return {name for path in sources for name in re.findall(r'"(vllm:[a-z0-9_]+)"', path.read_text())}


def packages() -> set[str]:
    """Names of ours that look like metrics."""
    return {path.name for path in ROOT.glob("*/src/*")} | {path.name for path in ROOT.glob("services/*/src/*")}


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[len(parts) - parts[::-1].index("src") :])
