"""Where the command line finds the services: as the environment says, else where ``up`` runs them, else by default."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVICES = ("ingest", "synth", "trainer", "inference")
DEFAULT_PORTS = {
    "inference": 8100,
    "ingest": 8101,
    "synth": 8102,
    "trainer": 8103,
    "object-store": 8333,
    "broker": 9092,
}
SERVICE_OF_KIND = {
    "crawl": "ingest", "corpus": "ingest", "harvest": "ingest",
    "preflight": "synth", "synth": "synth", "mix": "synth", "freeze": "synth", "train": "trainer", "export": "trainer",
    "deploy": "inference", "evaluate": "inference", "loadtest": "inference", "compare": "inference",
}  # fmt: skip


class CliSettings(BaseSettings):
    """``home`` holds all that ``textmill up`` keeps: data, logs, models, and what runs now."""

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_CLI_")

    home: Path = Path(".textmill")
    ingest_url: str = ""
    synth_url: str = ""
    trainer_url: str = ""
    inference_url: str = ""
    token: SecretStr = SecretStr("")
    api_key: SecretStr = SecretStr("")

    @property
    def state_file(self) -> Path:
        return self.home / "state.json"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    def urls(self) -> Mapping[str, str]:
        """The address of each service."""
        running = self._running()
        return {
            name: getattr(self, f"{name}_url") or running.get(name) or f"http://127.0.0.1:{DEFAULT_PORTS[name]}"
            for name in SERVICES
        }

    def _running(self) -> Mapping[str, str]:
        try:
            state = json.loads(self.state_file.read_text())
        except (OSError, ValueError):
            return {}
        return {name: service["url"] for name, service in state.get("processes", {}).items()}
