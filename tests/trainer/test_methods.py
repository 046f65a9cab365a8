"""QLoRA, LoRA and all weights; LoRA's kinds: what is trained, in which precision, and that it is what is published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.trainer.conftest import make_records
from tests.trainer.test_families import settings_of

from textmill.contracts.training import AdapterKind, Method
from textmill_trainer.gate import pass_gate
from textmill_trainer.loop import plain_model, train
from textmill_trainer.model import LoraSettings, adapted_weight, linear4bits, load_model
from textmill_trainer.prepare import Example, encode_all
from textmill_trainer.supervised import Supervised, mean_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    return encode_all(make_records(8), tokenizer, 100)


def loaded(base: Path, method: Method, kind: AdapterKind = "lora", **changes: Any) -> Any:
    return load_model(base, method, CPU, lora=LoraSettings(8, 16, 0.0, kind), seed=0, **changes)


WAYS: list[tuple[Method, AdapterKind, int]] = [
    ("qlora", "lora", 0), ("qlora", "rslora", 0), ("qlora", "dora", 0), ("qlora", "dora", 1 << 30),
    ("lora", "lora", 0), ("lora", "dora", 0), ("full", "lora", 0),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind", "budget"), WAYS)
def test_a_method_trains_and_is_published_as_trained(
    tiny_base: Path, examples: list[Example], tmp_path: Path, method: Method, kind: AdapterKind, budget: int
) -> None:
    model = loaded(tiny_base, method, kind, dequantized_budget_bytes=budget)
    assert isinstance(model, PeftModel) == (method != "full")
    assert bool(linear4bits(model)) == (method == "qlora" and budget == 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before = mean_loss(plain_model(model), examples, 512, CPU)
    train(model, Supervised(), examples, settings_of(steps=3), tmp_path / "run")
    assert mean_loss(plain_model(model), examples, 512, CPU) < before - 0.01
    report, _ = pass_gate(
        model, tiny_base, tmp_path / "merged", examples, method=method, max_kl=1e-2, max_padded_tokens=512
    )
    assert report.published.mean_kl < 1e-4
    assert report.base.mean_kl > 10 * report.published.mean_kl


def test_full_trains_every_weight_where_bf16_would_stand_still(tiny_base: Path, examples: list[Example]) -> None:
    """A step of 1e-6 is below bf16's resolution of nearly all weights; in fp32 they all move."""
    model = loaded(tiny_base, "full")
    parameters = list(model.parameters())
    assert all(p.requires_grad for p in parameters)
    start = [p.detach().clone() for p in parameters]
    weights = model.model.layers[0].mlp.up_proj.weight
    first = weights.detach().clone()
    losses = Supervised().losses(model, examples, CPU).losses_R
    losses.sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0).step()
    moved = [bool((a != b).any()) for a, b in zip(start, parameters, strict=True)]
    assert all(moved)
    assert (weights != first).float().mean() > 0.99
    assert (weights.bfloat16() != first.bfloat16()).float().mean() < 0.1


def test_rslora_scales_by_the_root_of_the_rank(tiny_base: Path) -> None:
    def scaling(kind: AdapterKind) -> float:
        model = loaded(tiny_base, "lora", kind)
        return float(model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").scaling["default"])

    assert scaling("lora") == pytest.approx(16 / 8)
    assert scaling("rslora") == pytest.approx(16 / 8**0.5)


def test_dora_merges_with_the_length_it_has_learnt(tiny_base: Path) -> None:
    """Rows of the merged weight have the magnitude vector's length, not that of W + dW."""
    model = loaded(tiny_base, "lora", "dora")
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    generator = torch.Generator().manual_seed(1)
    layer.lora_B["default"].weight.data.normal_(std=0.1, generator=generator)
    layer.lora_magnitude_vector["default"].weight.data.mul_(1.5)
    merged = adapted_weight(layer, layer.base_layer.weight.data)
    x_BD = torch.randn(4, 64, generator=generator)  # noqa: N806 (axes)
    assert torch.allclose(merged.norm(dim=1), layer.lora_magnitude_vector["default"].weight, rtol=1e-4)
    with torch.no_grad():
        ours, theirs = x_BD @ merged.T, layer(x_BD.bfloat16()).float()
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_an_adapter_starts_as_the_base(tiny_base: Path, examples: list[Example], kind: AdapterKind) -> None:
    model = loaded(tiny_base, "lora", kind)
    start = mean_loss(plain_model(model), examples, 512, CPU)
    with model.disable_adapter():
        assert start == pytest.approx(mean_loss(plain_model(model), examples, 512, CPU), rel=1e-4)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_gradient_checkpointing_changes_no_gradient(tiny_base: Path, examples: list[Example], method: Method) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = loaded(tiny_base, method, gradient_checkpointing=checkpointing)
        core = plain_model(model)
        model.train()
        assert core.is_gradient_checkpointing == checkpointing
        Supervised().losses(core, examples, CPU).losses_R.sum().backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in model.parameters() if p.requires_grad]

    kept, computed_again = gradients(False), gradients(True)
    assert any(g.abs().sum() > 0 for g in computed_again)
    assert all(torch.equal(a, b) for a, b in zip(kept, computed_again, strict=True))
