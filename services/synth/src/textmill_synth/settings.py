"""Settings of the synth service, from ``TEXTMILL_SYNTH_*``."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from textmill.settings import ServiceSettings

ResponseMode = Literal["auto", "json", "text"]


class SynthSettings(ServiceSettings):
    """``llm_*`` name the OpenAI-compatible endpoint. The key is sent to ``llm_url`` alone, never to a job's own URL.

    ``response_mode``: ``json`` asks for structured output, ``text`` for plain text, ``auto`` finds out with one call.
    ``deadline_s`` bounds each try of a call, from its admission to its last byte.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_SYNTH_")

    port: int = 8102
    llm_url: str = "http://127.0.0.1:8100/v1"
    llm_model: str = "smollm2-135m"
    llm_api_key: SecretStr = SecretStr("")
    response_mode: ResponseMode = "auto"
    deadline_s: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=16, ge=1, le=10_000)
    max_tries: int = Field(default=5, ge=1)
    retry_delay_s: float = Field(default=0.5, gt=0)
