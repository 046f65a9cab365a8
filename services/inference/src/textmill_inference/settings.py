"""What can be set from outside. Every default works on one machine."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from textmill.contracts.keys import Sha256
from textmill.settings import ServiceSettings

EVERY_NAME = "*"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill"


class InferenceSettings(ServiceSettings):
    """``engines`` maps model names to engines that run elsewhere (Kubernetes), to one URL or to a list of replicas; the
    rest are started here. With the name ``*`` nothing is: the server at its URL, vLLM or an inference service that has
    it, is asked which models it serves, and deploys.

    ``gateway_url`` (with or without /v1) and ``client_key`` are what our own evaluations and load tests use. Gateways
    accept their ``client_key``; where it is empty the process makes one for itself, which no other gateway knows.
    ``hold_s`` is how long a request waits for an engine that is starting before it is refused with 503.
    ``lm_eval_folder`` holds lm-eval tasks of the owner's, besides its own.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INFERENCE_")

    port: int = 8100
    base_model: Path = Field(default_factory=lambda: cache_root() / "models" / "smollm2-135m-instruct")
    base_name: str = "smollm2-135m"
    engines: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    client_key: SecretStr = SecretStr("")
    gateway_url: str = ""
    cache_dir: Path = Field(default_factory=lambda: cache_root() / "inference")
    max_model_len: int = Field(default=2048, ge=64)
    kv_cache_gib: int = Field(default=1, ge=1)
    engine_args: tuple[str, ...] = ()
    start_timeout_s: float = Field(default=300.0, gt=0)
    hold_s: float = Field(default=120.0, ge=0)
    lm_eval_folder: Path | None = None

    def replicas(self) -> dict[str, tuple[str, ...]]:
        """The URLs of each attached model's engines."""
        named = {name: urls for name, urls in self.engines.items() if name != EVERY_NAME}
        return {name: (urls,) if isinstance(urls, str) else urls for name, urls in named.items()}

    @property
    def behind(self) -> str:
        """The URL of the server that serves every other name and deploys; empty if that is this service."""
        urls = self.engines.get(EVERY_NAME, "")
        return urls if isinstance(urls, str) else urls[0]

    @property
    def own_url(self) -> str:
        """Where our own evaluations and load tests reach the gateway."""
        return (self.gateway_url or f"http://127.0.0.1:{self.port}").rstrip("/").removesuffix("/v1")


class AccessSettings(BaseSettings):
    """``keys``: ``on`` answers holders of an API key alone, ``off`` everybody. ``auto`` is off for a service that
    listens on loopback only, as ``textmill up`` starts it, and has no ``api_keys``; it is on everywhere else.

    ``api_keys`` are SHA-256 hex digests of keys that are accepted besides those made with ``textmill keys create``,
    without limits. ``keys_poll_s`` is how soon a new or revoked key is seen, and how often gateways tell each other
    what quotas are used. For each model at most ``max_in_flight`` requests are at the engine and ``queue_size`` wait,
    each for at most ``queue_timeout_s``.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INFERENCE_")

    keys: Literal["auto", "on", "off"] = "auto"
    api_keys: tuple[Sha256, ...] = ()
    keys_poll_s: float = Field(default=2.0, gt=0)
    max_in_flight: int = Field(default=1024, ge=1)
    queue_size: int = Field(default=1024, ge=0)
    queue_timeout_s: float = Field(default=30.0, gt=0)

    def keys_required(self, host: str) -> bool:
        """``host`` is what the service listens on."""
        if self.keys == "auto":
            return host not in _LOOPBACK or bool(self.api_keys)
        return self.keys == "on"
