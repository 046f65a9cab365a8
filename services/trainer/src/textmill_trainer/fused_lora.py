"""LoRA layers' forward and backward in as few matrix products and passes over the activations as there can be.

peft's layer casts its input to the adapter's fp32, multiplies there, scales, adds and casts back: on a CPU, in bf16,
those passes take as long as the layer's own matrix product. Here the adapter's two small matrices are cast instead of
the activations, and their product is added within the matrix product, as bf16 autocast and LoRA kernels for GPUs do.
Layers with the same input (queries, keys and values; gate and up) are one product, with their adapters in blocks of
one: 32 products a decoder layer and step instead of 56. Gradients of the adapter stay fp32. In fp32 the arithmetic is
peft's.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes: M tokens, I inputs, O outputs, R rank)

from collections.abc import Iterator, Sequence
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
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""What Llama and its likes call the layers that are called one after the other with the same input."""
Layer = LinearLora | Linear4bitLora


def fuse(model: PeftModel, join: bool = True) -> int:
    """Give each plain LoRA layer over a linear layer, NF4 or not, the fused forward. Returns how many it was.

    Layers with dropout or with DoRA keep peft's. What they are saved, merged and counted by stays. ``join`` makes one
    product of siblings, and puts their frozen weights, if they aren't NF4, side by side in memory, each layer's a part
    of it; leave it out where they are to be spread over processes.
    """
    fused = 0
    for parent in model.modules():
        layers = {name: m for name, m in parent.named_children() if isinstance(m, Layer) and _is_plain(m)}
        for together in _grouped(layers, join):
            group = _Group(together)
            for index, layer in enumerate(together):
                layer.forward = partial(_forward, group, index, layer.forward)  # type: ignore[method-assign]
            fused += len(together)
    return fused


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


def _grouped(layers: dict[str, Layer], join: bool) -> Iterator[list[Layer]]:
    """Siblings together, all others alone."""
    left = dict(layers)
    for names in _SIBLINGS if join else ():
        found = [left[name] for name in names if name in left]
        if len(found) == len(names) and _alike(found):
            yield [left.pop(name) for name in names]
    yield from ([layer] for layer in left.values())


def _alike(layers: Sequence[Layer]) -> bool:
    """Whether one product can stand for theirs."""
    bases = [(_base(layer), layer.scaling[_ADAPTER]) for layer in layers]
    return len({(type(b), b.in_features, b.weight.dtype, b.weight.device, b.bias is None, s) for b, s in bases}) == 1


def _base(layer: Layer) -> nn.Linear:
    return cast(nn.Linear, layer.base_layer)


def _linear(parts: nn.ModuleDict) -> nn.Linear:
    return cast(nn.Linear, parts[_ADAPTER])


class _Group:
    """Layers that are called in turn with one input: the first call computes for all, the others take their parts."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._alone = [_Product([layer]) for layer in layers]
        self._all = _Product(layers) if len(layers) > 1 else self._alone[0]
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}

    def layer(self, index: int) -> Layer:
        return self._layers[index]

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if index == 0:
            self._outputs = dict(enumerate(self._all(x)))
            self._input = x if len(self._layers) > 1 else None
            return self._outputs.pop(0)
        if x is not self._input or index not in self._outputs:
            return self._alone[index](x)[0]
        found = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return found


class _Product:
    """One matrix product for some layers: their frozen weights and biases, one above the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.bases = [_base(layer) for layer in layers]
        self.outputs = [base.out_features for base in self.bases]
        self.ranks = [_linear(layer.lora_A).out_features for layer in layers]
        nf4 = isinstance(self.bases[0], Linear4bit)
        self._whole = torch.empty(0) if nf4 or len(layers) == 1 else self._laid_together()

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        adapters = (_linear(part).weight for layer in self.layers for part in (layer.lora_A, layer.lora_B))
        parts = _LoraLinears.apply(x, self, *adapters)  # type: ignore[no-untyped-call]
        return cast(tuple[torch.Tensor, ...], parts)

    @property
    def weight(self) -> torch.Tensor:
        """(O, I), of all layers."""
        first = self.bases[0]
        if isinstance(first, Linear4bit):
            return self._unpacked()
        if len(self.bases) == 1:
            return first.weight
        if first.weight.data_ptr() != self._whole.data_ptr():  # after a move or a change of type
            self._whole = self._laid_together()
        return self._whole

    def bias(self, dtype: torch.dtype) -> torch.Tensor | None:
        biases: list[torch.Tensor] = [base.bias for base in self.bases if base.bias is not None]
        return torch.cat(biases).to(dtype) if biases else None

    @property
    def scaling(self) -> float:
        """The same for all layers."""
        return cast(float, self.layers[0].scaling[_ADAPTER])

    def blocks(self, bs: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """(O, R): each layer's B, zero elsewhere."""
        if len(bs) == 1:
            return bs[0].to(dtype)
        whole_OR = bs[0].new_zeros(sum(self.outputs), sum(self.ranks), dtype=dtype)
        for b, block in zip(bs, self.diagonal(whole_OR), strict=True):
            block.copy_(b)
        return whole_OR

    def diagonal(self, whole_OR: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each layer's block."""
        row = column = 0
        for height, width in zip(self.outputs, self.ranks, strict=True):
            yield whole_OR[row : row + height, column : column + width]
            row, column = row + height, column + width

    def _unpacked(self) -> torch.Tensor:
        """The NF4 weights in bf16. One piece at a time, so that little is there twice (``memory`` counts it)."""
        bases = cast(list[Linear4bit], self.bases)
        if len(bases) == 1:
            return dequantized_weight(bases[0])
        shape = sum(self.outputs), bases[0].in_features
        whole = torch.empty(shape, dtype=torch.bfloat16, device=bases[0].weight.device)
        for base, part in zip(bases, torch.split(whole, self.outputs), strict=True):
            part.copy_(dequantized_weight(base))
        return whole

    def _laid_together(self) -> torch.Tensor:
        """No copy stays: each layer's weight becomes a part of the whole."""
        with torch.no_grad():
            whole = torch.cat([base.weight for base in self.bases])
            for base, part in zip(self.bases, torch.split(whole, self.outputs), strict=True):
                base.weight = nn.Parameter(part, requires_grad=False)
        return whole


def _forward(group: _Group, index: int, forward: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``x`` is (..., I), the result (..., O). An adapter that is switched off is peft's business."""
    layer = group.layer(index)
    if layer.disable_adapters or layer.merged or args or kwargs:
        return cast(torch.Tensor, forward(x, *args, **kwargs))
    return group.output(index, x)


class _LoraLinears(torch.autograd.Function):
    """For each layer x W^T + bias + scaling (x A^T) B^T. W and bias are frozen; where W is NF4, each use unpacks it.

    All layers' A are one above the other, and their B are the blocks of a matrix that is zero elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: _Product, *adapters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_MI = x.reshape(-1, x.shape[-1])
        a_RI = torch.cat(adapters[::2]).to(x.dtype)
        b_OR = product.blocks(adapters[1::2], x.dtype)
        xa_MR = x_MI @ a_RI.t()
        y_MO = nn.functional.linear(x_MI, product.weight, product.bias(x.dtype))
        y_MO.addmm_(xa_MR, b_OR.t(), alpha=product.scaling)
        ctx.save_for_backward(x_MI, a_RI, b_OR, xa_MR)
        ctx.product, ctx.shape = product, x.shape
        return torch.split(y_MO.view(*x.shape[:-1], -1), product.outputs, -1)

    @staticmethod
    def backward(ctx: Any, *dys: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, a_RI, b_OR, xa_MR = ctx.saved_tensors
        product: _Product = ctx.product
        dy_MO = (dys[0] if len(dys) == 1 else torch.cat(dys, -1)).reshape(x_MI.shape[0], -1)
        dxa_MR = _scaled(product.scaling, dy_MO, b_OR)
        dx = (dy_MO @ product.weight).addmm_(dxa_MR, a_RI).view(ctx.shape) if ctx.needs_input_grad[0] else None
        das = torch.split((dxa_MR.t() @ x_MI).float(), product.ranks)
        dbs = product.diagonal(_scaled(product.scaling, dy_MO.t(), xa_MR).float())
        return dx, None, *(gradient for pair in zip(das, dbs, strict=True) for gradient in pair)


def _scaled(scaling: float, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Their product, scaled within it."""
    return torch.addmm(left.new_empty(1), left, right, beta=0.0, alpha=scaling)
