"""What one process and several are trained on, to be compared."""

from pathlib import Path

import torch
from peft import PeftModel

from textmill.contracts.training import Method
from textmill_trainer.loop import LoopSettings
from textmill_trainer.model import LoraSettings, load_model
from textmill_trainer.prepare import Example

SETTINGS = LoopSettings(
    epochs=3, batch_size=5, learning_rate=1e-2, warmup_ratio=0.1, evaluations=0, checkpoints=2, seed=0,
    max_padded_tokens=48,
)  # fmt: skip
"""Three or so microbatches a step, and a last step of each epoch with fewer records than the others."""
WAYS: dict[str, tuple[Method, int]] = {"lora": ("lora", 0), "dequantized": ("qlora", 1 << 30), "nf4": ("qlora", 0)}


def examples() -> list[Example]:
    """21 of uneven length: an odd one is alone in its step, so that the other process has nothing to do."""
    return [
        Example(f"rec_{n}", "doc", tuple(7 * n + t for t in range(5 + n % 13)), (False, False) + (True,) * (3 + n % 13))
        for n in range(21)
    ]


def load(base: Path, way: str) -> PeftModel:
    """In fp32, save for what NF4 computes in bf16."""
    method, budget_bytes = WAYS[way]
    lora = LoraSettings(rank=4, alpha=8, dropout=0.0)
    model = load_model(base, method, torch.device("cpu"), lora=lora, seed=0, dequantized_budget_bytes=budget_bytes)
    assert isinstance(model, PeftModel)
    return model if way == "nf4" else model.float()
