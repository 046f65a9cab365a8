"""What can be set from outside. Every default works on one machine."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints
from pydantic_settings import SettingsConfigDict

from textmill.settings import ServiceSettings

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill"


class InferenceSettings(ServiceSettings):
    """``engines`` maps model names to engines that run elsewhere (Kubernetes); the rest are started here.

    ``api_keys`` are SHA-256 hex digests of the keys that the gateway accepts; empty means open, for one machine only.
    ``gateway_url`` (with or without /v1) and ``client_key`` are what our own evaluations and load tests use.
    ``hold_s`` is how long a request waits for an engine that is starting before it is refused with 503.
    ``lm_eval_folder`` holds lm-eval tasks of the owner's, besides its own.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INFERENCE_")

    port: int = 8100
    base_model: Path = Field(default_factory=lambda: cache_root() / "models" / "smollm2-135m-instruct")
    base_name: str = "smollm2-135m"
    engines: dict[str, str] = Field(default_factory=dict)
    api_keys: frozenset[Sha256] = frozenset()
    client_key: SecretStr = SecretStr("")
    gateway_url: str = ""
    cache_dir: Path = Field(default_factory=lambda: cache_root() / "inference")
    max_model_len: int = Field(default=2048, ge=64)
    kv_cache_gib: int = Field(default=1, ge=1)
    engine_args: tuple[str, ...] = ()
    start_timeout_s: float = Field(default=300.0, gt=0)
    hold_s: float = Field(default=120.0, ge=0)
    lm_eval_folder: Path | None = None

    @property
    def own_url(self) -> str:
        """Where our own evaluations and load tests reach the gateway."""
        return (self.gateway_url or f"http://127.0.0.1:{self.port}").rstrip("/").removesuffix("/v1")
