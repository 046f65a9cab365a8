"""What of load tests can be set from outside."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LoadtestSettings(BaseSettings):
    """``secrets`` is a folder with a file for each key that load tests may name (a mounted Kubernetes secret).

    ``workers`` is how many processes make the load; None is as many as it takes and there are cores for.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INFERENCE_LOADTEST_")

    secrets: Path | None = None
    workers: int | None = Field(default=None, ge=1, le=256)
