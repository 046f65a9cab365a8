"""The merged folder is the trained model, in the base's own shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.trainer.conftest import make_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from textmill.errors import JobFailed
from textmill_trainer.batches import collate
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import supervised_logits
from textmill_trainer.merge import check_merge, merge
from textmill_trainer.model import LoraSettings, add_lora, dequantize_in_place, load_nf4
from textmill_trainer.prepare import Example, encode_all


@pytest.fixture(scope="session")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(6), tokenizer, 100)


def trained(base: Path, residence: str) -> Any:
    """As if it had been trained: B is no longer zero."""
    core = load_nf4(base, torch.device("cpu"))
    if residence == "dequantized":
        dequantize_in_place(core)
    model = add_lora(core, LoraSettings(rank=4, alpha=8, dropout=0.0), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


@pytest.mark.parametrize("residence", ["nf4", "dequantized"])
def test_merged_is_the_live_adapter(tiny_base: Path, examples: Any, tmp_path: Path, residence: str) -> None:
    model = trained(tiny_base, residence)
    merge(model, tiny_base, tmp_path / "merged")
    checked = check_merge(model, tmp_path / "merged", examples, 64)
    assert checked.mean_kl < 1e-4
    assert checked.top1_agreement > 0.9
    assert checked.tokens == sum(e.supervised_tokens for e in examples)


def test_the_check_sees_a_wrong_merge(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = trained(tiny_base, "dequantized")
    merge(trained(tiny_base, "nf4"), tiny_base, tmp_path / "merged")
    model.get_submodule("base_model.model.model.layers.0.mlp.down_proj.lora_B.default").weight.data.normal_()
    assert check_merge(model, tmp_path / "merged", examples, 64).mean_kl > 1e-3


def test_names_and_files_are_the_bases_own(tiny_base: Path, tmp_path: Path) -> None:
    merge(trained(tiny_base, "nf4"), tiny_base, tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == sorted(p.name for p in tiny_base.iterdir())
    assert _tensors(tmp_path / "merged") == _tensors(tiny_base)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_plain_transformers_loads_it(tiny_base: Path, examples: Any, tmp_path: Path) -> None:
    model = trained(tiny_base, "dequantized")
    merge(model, tiny_base, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    batch = collate(examples)
    live = supervised_logits(plain_model(model), batch)
    assert (supervised_logits(loaded, batch).argmax(-1) == live.argmax(-1)).float().mean() > 0.9


def test_a_merge_that_changes_nothing_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    untrained = add_lora(load_nf4(tiny_base, torch.device("cpu")), LoraSettings(4, 8, 0.0), seed=1)
    with pytest.raises(JobFailed, match="equals the base"):
        merge(untrained, tiny_base, tmp_path / "merged")


def _tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
