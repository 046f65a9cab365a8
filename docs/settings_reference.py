"""Writes docs/settings.md from the settings classes, so that the page can't drift from the code."""

import inspect
import os
import sys
from pathlib import Path

os.environ["XDG_CACHE_HOME"] = "~/.cache"  # paths on the page are the reader's, not this machine's

from pydantic_settings import BaseSettings

from textmill.settings import BusSettings, ServiceSettings, StoreSettings
from textmill_cli.settings import CliSettings
from textmill_inference.engine.settings import EngineSettings
from textmill_inference.loadtest.settings import LoadtestSettings
from textmill_inference.settings import AccessSettings, InferenceSettings
from textmill_ingest.settings import IngestSettings
from textmill_synth.settings import SynthSettings
from textmill_trainer.settings import TrainerSettings

PAGE = Path(__file__).with_name("settings.md")
SERVICES: tuple[type[ServiceSettings], ...] = (IngestSettings, SynthSettings, TrainerSettings, InferenceSettings)
INTRO = """\
# Settings

Every setting is an environment variable with a default that works on one machine. This page is written by
`python docs/settings_reference.py`; a test holds it to the code. `textmill doctor` names variables that nothing reads.
"""


def page() -> str:
    parts = [INTRO]
    parts.append(_section("The object store", StoreSettings, list(StoreSettings.model_fields)))
    parts.append(_section("The broker", BusSettings, list(BusSettings.model_fields)))
    shared = ", ".join(f"`{name.upper()}`" for name in ServiceSettings.model_fields)
    doc = inspect.getdoc(ServiceSettings) or ""
    parts.append(f"## Every service\n\n{_prose(doc)}\n\nEach service has these under its own prefix: {shared}.\n")
    parts.append(_table("TEXTMILL_<SERVICE>_", ServiceSettings, list(ServiceSettings.model_fields)))
    for settings in SERVICES:
        own = [name for name in settings.model_fields if name not in ServiceSettings.model_fields or name == "port"]
        parts.append(_section(settings.__name__.removesuffix("Settings").lower(), settings, own))
    parts.append(_section("inference: engines started here", EngineSettings, list(EngineSettings.model_fields)))
    parts.append(_section("inference: keys and admission", AccessSettings, list(AccessSettings.model_fields)))
    parts.append(_section("inference: load tests", LoadtestSettings, list(LoadtestSettings.model_fields)))
    parts.append(_section("The command line", CliSettings, list(CliSettings.model_fields)))
    return "\n".join(parts)


def _section(title: str, settings: type[BaseSettings], names: list[str]) -> str:
    prefix = settings.model_config.get("env_prefix", "")
    return f"## {title}\n\n{_prose(inspect.getdoc(settings) or '')}\n\n{_table(prefix, settings, names)}"


def _prose(doc: str) -> str:
    return doc.replace("``", "`")


def _table(prefix: str, settings: type[BaseSettings], names: list[str]) -> str:
    rows = ["| variable | default |", "|---|---|"]
    for name in names:
        default = settings.model_fields[name].get_default(call_default_factory=True)
        shown = f"`{default}`" if str(default) else "empty"
        rows.append(f"| `{prefix}{name.upper()}` | {shown} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/settings.md is old; write it anew")
    PAGE.write_text(page(), encoding="utf-8")
