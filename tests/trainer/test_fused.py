"""The quick ways through a layer give what the slow ones give: outputs and gradients, in fp32 and in bf16."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from textmill_trainer.fused_lora import fuse
from textmill_trainer.fused_norm import fuse_norms
from textmill_trainer.packing import short_causal

TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


def adapted(dtype: torch.dtype, *, family: str = "llama", **lora: Any) -> PeftModel:
    """Two layers with an adapter whose B isn't zero any more. Qwen2's have biases."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    core: Any = LlamaForCausalLM(LlamaConfig(**sizes)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    core.to(dtype).requires_grad_(False)
    model: Any = get_peft_model(core, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5)
    return model


def outcome(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(input_ids=torch.arange(40).view(2, 20) % 64).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [{}, {"alpha_pattern": {"v_proj": 3}}, {"rank_pattern": {"up_proj": 6}}])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fused_lora_is_pefts(family: str, lora: dict[str, Any]) -> None:
    model = adapted(torch.float32, family=family, **lora)
    expected, expected_gradients = outcome(model)
    assert fuse(model) == 14
    found, gradients = outcome(model)
    assert relative(found, expected) < 1e-5
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert relative(gradient, expected_gradients[name]) < 1e-4, name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_in_bf16_fused_lora_is_about_as_exact_as_pefts(family: str) -> None:
    """peft keeps the adapter's product in fp32 up to the sum; the exact gradients are those of an fp32 model."""
    _, exact = outcome(adapted(torch.float32, family=family))
    model = adapted(torch.bfloat16, family=family)
    _, pefts = outcome(model)
    fuse(model)
    _, ours = outcome(model)
    assert {g.dtype for g in ours.values()} == {torch.float32}

    def error(gradients: dict[str, torch.Tensor]) -> float:
        return sum(relative(gradient, exact[name]) for name, gradient in gradients.items()) / len(exact)

    assert error(ours) < 1.5 * error(pefts)


def test_siblings_weights_lie_side_by_side_and_nothing_is_copied() -> None:
    model: Any = adapted(torch.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fuse(model)
    outcome(model)
    attention, mlp = model.base_model.model.model.layers[0].self_attn, model.base_model.model.model.layers[0].mlp
    for layers in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        weights = [layer.base_layer.weight for layer in layers]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
        assert weights[0].untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [name for name in after if after[name].requires_grad] == [name for name in before if "lora_" in name]


def test_siblings_that_are_not_to_be_joined_stay_apart() -> None:
    model: Any = adapted(torch.float32)
    expected, _ = outcome(model)
    assert fuse(model, join=False) == 14
    found, _ = outcome(model)
    assert relative(found, expected) < 1e-5
    attention = model.base_model.model.model.layers[0].self_attn
    q, k = (layer.base_layer.weight.untyped_storage().data_ptr() for layer in (attention.q_proj, attention.k_proj))
    assert q != k


def test_a_sibling_called_with_another_input_or_alone_computes_for_itself() -> None:
    fused: Any = adapted(torch.float32)
    plain = deepcopy(fused)
    fuse(fused)
    a, b = torch.randn(3, 32), torch.randn(3, 32)
    ours, pefts = (model.base_model.model.model.layers[0].self_attn for model in (fused, plain))
    for name, x in (("k_proj", a), ("q_proj", a), ("k_proj", b), ("v_proj", a), ("v_proj", a), ("k_proj", a)):
        assert relative(getattr(ours, name)(x), getattr(pefts, name)(x)) < 1e-5, name


def test_an_adapter_that_is_switched_off_is_off() -> None:
    model = adapted(torch.float32)
    fuse(model)
    with_adapter, _ = outcome(model)
    plain = adapted(torch.float32)
    with torch.no_grad(), model.disable_adapter(), plain.disable_adapter():
        base, expected = (m(input_ids=torch.arange(40).view(2, 20) % 64).logits for m in (model, plain))
    assert torch.equal(base, expected)
    assert relative(with_adapter, base) > 1e-2


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_what_is_more_than_plain_lora_stays_pefts(lora: dict[str, Any]) -> None:
    assert fuse(adapted(torch.float32, **lora)) == 0


@pytest.mark.parametrize(("dtype", "near"), TYPES)
def test_fused_norm_is_rms_norm(dtype: torch.dtype, near: float) -> None:
    """With a mean far from zero, which layer norm would take away; against double precision."""
    torch.manual_seed(0)
    norm: Any = LlamaRMSNorm(24, eps=1e-3)
    nn.init.uniform_(norm.weight)
    norm.to(dtype).requires_grad_(False)
    x, dy = (torch.randn(3, 5, 24) * 2 + 1.5).to(dtype), (torch.randn(3, 5, 24) + 1).to(dtype)
    exact, exact_x = deepcopy(norm).double(), x.double().requires_grad_()
    exact_y = exact.weight * exact_x * torch.rsqrt(exact_x.pow(2).mean(-1, keepdim=True) + 1e-3)
    exact_y.backward(dy.double())
    assert fuse_norms(nn.ModuleList([norm])) == 1
    found_x = x.clone().requires_grad_()
    found = norm(found_x)
    found.backward(dy)
    assert found.dtype == dtype
    assert relative(found, exact_y) < near
    assert found_x.grad is not None
    assert exact_x.grad is not None
    assert relative(found_x.grad, exact_x.grad) < near


def test_a_norm_that_computes_something_else_stays() -> None:
    gemma: Any = GemmaRMSNorm(24)
    nn.init.normal_(gemma.weight)
    assert fuse_norms(nn.ModuleList([gemma, nn.LayerNorm(24)])) == 0


def test_a_trained_norms_weight_gets_its_gradient() -> None:
    norm: Any = LlamaRMSNorm(24)
    fuse_norms(nn.ModuleList([norm]))
    norm(torch.randn(2, 24)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (3, 1)])
def test_short_attention_is_causal_attention(heads: int, shared: int) -> None:
    torch.manual_seed(0)
    shapes = (2, heads, 7, 8), (2, shared, 7, 8), (2, shared, 7, 8)
    ours = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    out = short_causal(*ours, scaling=0.3)
    expected = nn.functional.scaled_dot_product_attention(
        *theirs, is_causal=True, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    weight = torch.randn(expected.shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(out, expected, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)  # type: ignore[arg-type]
