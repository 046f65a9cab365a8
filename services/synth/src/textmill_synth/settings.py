"""Settings of the synth service, from ``TEXTMILL_SYNTH_*``."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from textmill.settings import ServiceSettings

ResponseMode = Literal["auto", "json", "text"]


class SynthSettings(ServiceSettings):
    """``llm_*`` name the OpenAI-compatible endpoint. The key is sent to ``llm_url`` alone, never to a job's own URL.

    ``response_mode``: ``json`` asks for structured output, ``text`` for plain text, ``auto`` finds out with one call.
    ``deadline_s`` bounds each try of a call, from its admission to its last byte. ``concurrency`` is the most calls at
    once of one worker; how many the endpoint bears is learnt. ``requests_per_minute`` and ``tokens_per_minute`` bound
    all workers together at ``llm_url``; 0 is no limit. ``fallback_*`` name a second endpoint, asked while the first is
    down, with the same model unless ``fallback_model`` says another. ``hedge_budget`` is the share of calls that may be
    made twice when they take longer than 95 % of the others; both are paid for.
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
    requests_per_minute: int = Field(default=0, ge=0)
    tokens_per_minute: int = Field(default=0, ge=0)
    fallback_url: str = ""
    fallback_model: str = ""
    fallback_api_key: SecretStr = SecretStr("")
    hedge_budget: float = Field(default=0.0, ge=0, le=0.5)
