"""NF4, LoRA, and the bitsandbytes trap on AVX512-BF16 CPUs."""

# ruff: noqa: N806 (tensor names carry their axes)

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import make_records

from textmill.errors import JobFailed
from textmill.weights import weights_sha256
from textmill_trainer.batches import collate
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import FrozenHeadLosses, supervised_logits, supervised_losses
from textmill_trainer.model import (
    LoraSettings,
    add_lora,
    choose_residence,
    dequantize_in_place,
    fetch_base,
    linear4bits,
    load_nf4,
)
from textmill_trainer.prepare import encode_all

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)


@pytest.fixture
def batch(tokenizer: Any) -> Any:
    return collate(encode_all(make_records(4), tokenizer, 100))


def test_all_linear_layers_but_the_head_are_nf4_and_get_lora(tiny_base: Path) -> None:
    core = load_nf4(tiny_base, CPU)
    assert len(linear4bits(core)) == 2 * 7
    model = add_lora(core, LORA, seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7
    assert all("lora_" in name for name in trained)


def test_no_nf4_layer_may_repack_itself(tiny_base: Path, batch: Any) -> None:
    """A forward without gradients must leave weights and later gradients alone, whatever the CPU has."""
    core = load_nf4(tiny_base, CPU)
    assert not any(m.support_avx512bf16_for_cpu for m in linear4bits(core).values())
    model = add_lora(core, LORA, seed=0)
    before = {name: m.weight.data.clone() for name, m in linear4bits(model).items()}
    reference = _gradients(model, batch)
    with torch.no_grad():
        model.eval()
        supervised_logits(plain_model(model), batch)
        model.train()
    assert all(torch.equal(before[name], m.weight.data) for name, m in linear4bits(model).items())
    assert all(torch.equal(a, b) for a, b in zip(reference, _gradients(model, batch), strict=True))


def test_dequantizing_once_changes_no_bit(tiny_base: Path, batch: Any) -> None:
    held, once = load_nf4(tiny_base, CPU), load_nf4(tiny_base, CPU)
    dequantize_in_place(once)
    assert not linear4bits(once)
    assert torch.equal(supervised_logits(held, batch), supervised_logits(once, batch))
    model_held, model_once = add_lora(held, LORA, seed=3), add_lora(once, LORA, seed=3)
    pairs = zip(_gradients(model_held, batch), _gradients(model_once, batch), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_residence_is_chosen_by_size(tiny_base: Path) -> None:
    core = load_nf4(tiny_base, CPU)
    weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
    assert choose_residence(core, 2 * weights) == "dequantized"
    assert choose_residence(core, 2 * weights - 1) == "nf4"


def test_the_adapters_start_follows_from_the_seed(tiny_base: Path) -> None:
    starts = [_lora_a(add_lora(load_nf4(tiny_base, CPU), LORA, seed)) for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_frozen_head_s_gradient_is_that_of_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has a factor of its own, as the answers of preference pairs have."""
    monkeypatch.setattr("textmill_trainer.loss.CHUNK_POSITIONS", 5)
    torch.manual_seed(1)
    weight_VD, targets_N, factors_N = torch.randn(50, 8), torch.randint(0, 50, (12,)), torch.randn(12)
    ours, plain = (torch.randn(12, 8, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    losses_N = FrozenHeadLosses.apply(ours, weight_VD, targets_N)
    expected_N = torch.nn.functional.cross_entropy(plain @ weight_VD.t(), targets_N, reduction="none")
    (losses_N * factors_N).sum().backward()
    (expected_N * factors_N).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(losses_N, expected_N, rtol=1e-5, atol=1e-5)
    assert ours.grad is not None
    assert plain.grad is not None
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(FrozenHeadLosses.apply(ours.detach(), weight_VD, targets_N), losses_N)


def test_loss_by_chunks_is_the_plain_loss(tiny_base: Path, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core = load_nf4(tiny_base, CPU)
    whole = supervised_losses(core, batch).sum()
    logits_BTV = core(input_ids=batch.token_ids_BT, use_cache=False).logits.float()
    plain = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1)[batch.places_N], batch.targets_N, reduction="sum"
    )
    monkeypatch.setattr("textmill_trainer.loss.CHUNK_POSITIONS", 5)
    assert whole.item() == pytest.approx(plain.item(), rel=2e-3)
    assert supervised_losses(core, batch).sum().item() == pytest.approx(whole.item(), rel=1e-5)


def test_padding_changes_no_loss(tiny_base: Path, tokenizer: Any) -> None:
    core = load_nf4(tiny_base, CPU)
    dequantize_in_place(core)
    core.to(torch.float32)  # type: ignore[arg-type]
    examples = encode_all(make_records(4), tokenizer, 100)
    together = supervised_losses(core, collate(examples)).sum().item()
    alone = sum(supervised_losses(core, collate([e])).sum().item() for e in examples)
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_base_that_is_nowhere_is_named() -> None:
    with pytest.raises(JobFailed, match="'nobody/nothing' is neither a local folder"):
        fetch_base("nobody/nothing")


def test_base_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(tmp_path) == first == hashlib.sha256(b"weights").hexdigest()


def _lora_a(model: Any) -> Any:
    return next(p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name)


def _gradients(model: Any, batch: Any) -> list[torch.Tensor]:
    model.zero_grad()
    supervised_losses(plain_model(model), batch).sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]
