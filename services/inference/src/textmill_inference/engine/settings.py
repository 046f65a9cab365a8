"""How vLLM is started on this machine. Beside ``InferenceSettings``, which say what is served."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseSettings):
    """``tensor_parallel`` GPUs hold one model, and each engine takes ``gpu_memory_share`` of them: 0.45 or less lets a
    second engine start beside the first on the same GPUs. Both count on GPUs alone.

    ``quantization`` is a method that vLLM knows (``fp8``, ``awq``, ``bitsandbytes``); empty leaves it to the model.
    ``max_adapters`` LoRA adapters run unmerged on the base model's engine, none by default, since room for them slows
    it down; ``max_adapter_rank`` is the largest rank among them. ``second``: a model that can't be loaded in place gets
    an engine beside the old one, ``auto``matically where memory allows; else the old one is stopped first, and requests
    wait. ``drain_s`` is how long an old engine may finish its answers.
    """

    model_config = SettingsConfigDict(env_prefix="TEXTMILL_INFERENCE_ENGINE_")

    tensor_parallel: int = Field(default=1, ge=1)
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    quantization: str = ""
    max_adapters: int = Field(default=0, ge=0)
    max_adapter_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64
    second: Literal["auto", "always", "never"] = "auto"
    drain_s: float = Field(default=300.0, ge=0)
