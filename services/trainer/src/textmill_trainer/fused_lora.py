"""A LoRA layer's forward and backward in as few passes over its activations as there can be.

peft's layer casts its input to the adapter's fp32, multiplies there, scales, adds and casts back: on a CPU, in bf16,
those passes take as long as the layer's own matrix product. Here the adapter's two small matrices are cast instead of
the activations, and their product is added within the matrix product, as bf16 autocast and LoRA kernels for GPUs do.
Gradients of the adapter stay fp32. In fp32 the arithmetic is peft's.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes: M tokens, I inputs, O outputs, R rank)

from functools import partial
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LinearLora
from peft.tuners.lora.bnb import Linear4bit as Linear4bitLora
from torch import nn

_ADAPTER = "default"
Layer = LinearLora | Linear4bitLora


def fuse(model: PeftModel) -> int:
    """Give each plain LoRA layer over a linear layer, NF4 or not, the fused forward. Returns how many it was.

    Layers with dropout or with DoRA keep peft's. What they are saved, merged and counted by stays.
    """
    layers = [m for m in model.modules() if isinstance(m, LinearLora | Linear4bitLora) and _is_plain(m)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    return len(layers)


def dequantized_weight(module: Linear4bit) -> torch.Tensor:
    """What the layer multiplies with: its NF4 weight in bf16, (out, in)."""
    # Sharding replaces the weight by a plain one, whose state the module still has.
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    weight: torch.Tensor = dequantize_4bit(module.weight.data, state)
    return weight.to(torch.bfloat16)


def _is_plain(layer: Layer) -> bool:
    return (
        type(layer.base_layer) in (nn.Linear, Linear4bit)
        and list(layer.lora_A) == [_ADAPTER]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and not layer.lora_bias[_ADAPTER]
    )


def _forward(layer: Layer, forward: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``x`` is (..., I), the result (..., O). An adapter that is switched off is peft's business."""
    if layer.disable_adapters or layer.merged or args or kwargs:
        return cast(torch.Tensor, forward(x, *args, **kwargs))
    a_RI, b_OR = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    parts = layer.base_layer, a_RI, b_OR, layer.scaling[_ADAPTER]
    return cast(torch.Tensor, _LoraLinear.apply(x, *parts))  # type: ignore[no-untyped-call]


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scaling (x A^T) B^T. W and its bias are frozen; where they are NF4, each use unpacks them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: nn.Linear,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x_MI = x.reshape(-1, x.shape[-1])
        a, b = a_RI.to(x.dtype), (b_OR * scaling).to(x.dtype)
        xa_MR = x_MI @ a.t()
        bias_O = None if base.bias is None else base.bias.to(x.dtype)
        y_MO = nn.functional.linear(x_MI, _frozen(base), bias_O).addmm_(xa_MR, b.t())
        ctx.save_for_backward(x_MI, a, b, xa_MR)
        ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
        return y_MO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, a_RI, b_OR, xa_MR = ctx.saved_tensors
        dy_MO = dy.reshape(-1, dy.shape[-1])
        dxa_MR = dy_MO @ b_OR
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy_MO @ _frozen(ctx.base)).addmm_(dxa_MR, a_RI).view(ctx.shape)
        da_RI = (dxa_MR.t() @ x_MI).float()
        db_OR = (dy_MO.t() @ xa_MR).float().mul_(ctx.scaling)
        return dx, None, da_RI, db_OR, None


def _frozen(base: nn.Linear) -> torch.Tensor:
    return dequantized_weight(base) if isinstance(base, Linear4bit) else base.weight
