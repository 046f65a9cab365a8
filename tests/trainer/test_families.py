"""Architectures other than Llama, tiny and random: loaded, trained, merged, and the merge is what was trained."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from textmill.errors import JobFailed
from textmill_trainer.gate import pass_gate
from textmill_trainer.loop import LoopSettings, plain_model, train
from textmill_trainer.model import LoraSettings, linear4bits, load_model
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.supervised import Supervised, mean_loss

CPU = torch.device("cpu")
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
SHAPE: dict[str, Any] = {
    "vocab_size": 49_152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def glm4() -> Any:
    """Gate and up projection are one matrix; attention has biases; a norm before and after each part."""
    return Glm4ForCausalLM(Glm4Config(**SHAPE, attention_bias=True, tie_word_embeddings=False))


def gemma2() -> Any:
    """Logits are soft-capped, after attention and after the head; every other layer has a sliding window."""
    # Capped at 1, so that a loss that forgot to cap them would be another one.
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, final_logit_softcapping=1.0, attn_logit_softcapping=5.0))


def qwen3() -> Any:
    """Queries and keys are normalized; the head is tied to the embedding."""
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True))


FAMILIES = {"glm4": (glm4, 2 * 6), "gemma2": (gemma2, 2 * 7), "qwen3": (qwen3, 2 * 7)}
"""With how many linear layers each has."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: Any, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    build: Callable[[], Any]
    build, layers = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family") / request.param
    torch.manual_seed(0)
    build().to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_base / name, folder / name)
    return folder, layers


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(8), tokenizer, 100)


def test_qlora_trains_and_merges(family: tuple[Path, int], examples: list[Example], tmp_path: Path) -> None:
    base, layers = family
    model = load_model(base, "qlora", CPU, lora=LORA, seed=0)
    assert len(linear4bits(model)) == layers
    assert sum(p.requires_grad for p in model.parameters()) == 2 * layers
    core = plain_model(model)
    before = mean_loss(core, examples, 512, CPU)
    train(model, Supervised(), examples, settings_of(steps=3), tmp_path / "run")
    assert mean_loss(core, examples, 512, CPU) < before - 0.01
    report, _ = pass_gate(
        model, base, tmp_path / "merged", examples, method="qlora", max_kl=1e-3, max_padded_tokens=512
    )
    assert report.published.mean_kl < 1e-4
    assert report.base.mean_kl > 10 * report.published.mean_kl


def test_the_loss_is_the_models_own(family: tuple[Path, int], examples: list[Example]) -> None:
    """Whatever the architecture does to its logits, transformers' own loss has it."""
    core = plain_model(load_model(family[0], "full", CPU, lora=LORA, seed=0))
    for example in examples[:2]:
        ids_1T = torch.tensor([example.token_ids])  # noqa: N806 (axes)
        labels_1T = torch.where(torch.tensor([example.supervised]), ids_1T, -100)  # noqa: N806
        theirs = core(input_ids=ids_1T, labels=labels_1T, use_cache=False).loss.item()
        assert mean_loss(core, [example], 512, CPU) == pytest.approx(theirs, rel=1e-5)


def test_experts_stay_as_they_are(tiny_base: Path, examples: list[Example], tmp_path: Path) -> None:
    """Adapters go on the layers around them; all weights can't be trained, which is said before training."""
    base = tmp_path / "moe"
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    built: Any = Qwen3MoeForCausalLM(config)
    built.to(torch.bfloat16).save_pretrained(base)
    model = load_model(base, "qlora", CPU, lora=LORA, seed=0)
    assert len(linear4bits(model)) == 2 * 4
    train(model, Supervised(), examples, settings_of(steps=3), tmp_path / "run")
    report, _ = pass_gate(
        model, base, tmp_path / "merged", examples, method="qlora", max_kl=1e-3, max_padded_tokens=512
    )
    assert report.published.mean_kl < 1e-4
    with pytest.raises(JobFailed, match="can't publish it; use qlora or lora"):
        load_model(base, "full", CPU, lora=LORA, seed=0)


def settings_of(steps: int) -> LoopSettings:
    return LoopSettings(
        epochs=steps, batch_size=8, learning_rate=1e-2, warmup_ratio=0.0, evaluations=0, checkpoints=0, seed=0,
        max_padded_tokens=512,
    )  # fmt: skip
