"""The trainer's settings, from ``TEXTMILL_TRAINER_*``."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from textmill.settings import ServiceSettings
from textmill_trainer.base_model import default_folder


def _default_work_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "trainer"


class TrainerSettings(ServiceSettings):
    """``base_model`` is a folder or a Hugging Face name, for jobs that name none.

    ``dequantized_budget_mb``: frozen weights up to this size are held in bf16, which is faster; larger ones stay NF4.
    ``max_padded_tokens`` bounds the memory of one forward pass; larger batches are cut into microbatches.
    ``general_prompts``: a YAML file with the lists ``measured`` and ``replayed``, besides our own general prompts.
    ``device_hour_price``: what an hour of this machine costs, for forecasts; 0 leaves the cost out.
    ``gpus``: how many a run is spread over, all that are visible if left out. Without a GPU, how many processes.
    ``job_template``: a Kubernetes Job in YAML; then each run is such a Job, and ``work_folder`` must be on a volume
    that it shares. ``job_queue`` is the Kueue queue that it goes into.
    ``tracking_url``: an MLflow server, or ``wandb:FOLDER`` for offline runs of Weights & Biases.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_TRAINER_")

    port: int = 8103
    base_model: str = str(default_folder())
    work_folder: Path = _default_work_folder()
    dequantized_budget_mb: int = 4_096
    max_padded_tokens: int = 8_192
    upload_every_s: float = 3.0
    general_prompts: Path | None = None
    tracking_url: str | None = None
    device_hour_price: float = 0.0
    gpus: int | None = Field(default=None, ge=1, le=64)
    job_template: Path | None = None
    job_queue: str = ""
