"""RMSNorm with layer norm's backward kernel, on the CPU.

transformers writes RMSNorm (Zhang and Sennrich 2019) as eight passes over the activations, and autograd differentiates
each: 0.6 ms for 304 x 576 numbers in bf16, where the matrix product beside it takes as long. Its gradient is layer
norm's about a mean of zero, plus that kernel's own correction for the mean taken back: 0.37 ms, and 1.2 for 4.1 ms on
long rows, at the same distance from the gradient in double precision.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

from functools import partial
from typing import Any, cast

import torch
from torch import nn


def fuse_norms(model: nn.Module) -> int:
    """Replace the forward of every norm that computes what ours does. Returns how many it was.

    Told by what a norm gives for made-up numbers, not by its name: Gemma's, say, multiplies by 1 + weight.
    """
    fused = 0
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), _epsilon(module)
        if epsilon is None or not isinstance(weight, nn.Parameter) or weight.dim() != 1 or weight.device.type != "cpu":
            continue
        ours = partial(_rms_norm, module, epsilon)
        if _same(module, ours, weight):
            module.forward = ours
            fused += 1
    return fused


def _epsilon(module: nn.Module) -> float | None:
    """The names that architectures give it; None for what is no RMSNorm of their own."""
    if "RMSNorm" not in type(module).__name__:
        return None
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return float(found) if isinstance(found, float) else None


@torch.no_grad()
def _same(module: nn.Module, ours: Any, weight: torch.Tensor) -> bool:
    made_up = torch.linspace(-3, 4, 2 * len(weight), dtype=weight.dtype).view(2, -1)
    expected = module(made_up)
    found: torch.Tensor = ours(made_up)
    near = torch.finfo(weight.dtype).eps
    return found.dtype == expected.dtype and torch.allclose(found, expected, rtol=2 * near, atol=near)


def _rms_norm(module: nn.Module, epsilon: float, x: torch.Tensor) -> torch.Tensor:
    """``x`` is (..., D). A weight that is trained takes the way of torch's own operations."""
    weight = cast(torch.Tensor, module.weight)
    if weight.requires_grad:
        x_fp32 = x.float()
        normal: torch.Tensor = x_fp32 * torch.rsqrt(x_fp32.pow(2).mean(-1, keepdim=True) + epsilon)
        scaled: torch.Tensor = weight * normal.to(x.dtype)
        return scaled
    return cast(torch.Tensor, _RmsNorm.apply(x, weight, epsilon))  # type: ignore[no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight, in fp32 inside. The frozen weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        x_fp32 = x.float()
        norm = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        normal: torch.Tensor = (x_fp32 * scale).to(x.dtype)
        return normal.mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        size, dy = x.shape[-1], dy.contiguous()
        no_mean = torch.zeros_like(scale)
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, [size], no_mean, scale, weight_D.float(), None, [True, False, False]
        )
        # Layer norm takes the mean of the gradient away, which RMSNorm doesn't.
        taken = (dy.view(-1, size) @ (weight_D[:, None] / size)).view(scale.shape)
        return dx.add_((taken * scale).to(dx.dtype)), None, None
