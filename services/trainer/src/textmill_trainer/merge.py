"""Merges an adapter into its base and writes the model, or stands the merged model up in memory to be measured first.

There are two bases to merge into. An adapter of QLoRA was trained beside NF4 weights, and added to those, dequantized,
it gives what was trained; added to the base's own 16-bit weights it gives another model, in which the quantization's
error is gone and what the adapter learnt to make up for it is not. peft's own merge quantizes again. The sum is taken
in fp32 and rounded to bf16 once. Files, tensor names, tokenizer and chat template are the base's own. Which of the two
is published is for ``gate`` to say. Knows no store and no examples.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from textmill.contracts.gates import MergedInto
from textmill.errors import JobFailed
from textmill_trainer.fused_lora import dequantized_weight
from textmill_trainer.loop import plain_model
from textmill_trainer.model import adapted_weight

_NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md"}
Replacement = Callable[[str, torch.Tensor], torch.Tensor | None]
"""From a tensor's name and the base's own tensor to the one written in its place; None leaves it as it is."""


def merge(model: PeftModel, base: Path, target: Path, into: MergedInto = "nf4") -> None:
    """Write the merged model as a folder like ``base``, one tensor at a time in memory beside the live model.

    Raises:
        JobFailed: a trained layer has no tensor of its name in the base's files, or the merged weights equal the base.
    """
    layers = trained_layers(model)
    frozen = {f"{name}.weight": m for name, m in plain_model(model).named_modules() if isinstance(m, nn.Linear)}
    changed = 0

    def replacement(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        nonlocal changed
        if name in layers:
            before = frozen_weight(layers[name], tensor, into)
            merged: torch.Tensor = adapted_weight(layers[name], before).to(torch.bfloat16).cpu()
            changed += int((merged != before.cpu()).sum())
            return merged
        # A layer that was quantized and not trained was computed with in NF4, too.
        return _live_weight(frozen[name]) if name in frozen and into == "nf4" else None

    _insist_on_names(set(layers) - _write(base, target, replacement))
    _insist_on_change(changed)


def save_full(model: PreTrainedModel, base: Path, target: Path) -> None:
    """Write a model of which all weights were trained, rounded to bf16, as a folder like ``base``.

    Raises:
        JobFailed: as ``merge``.
    """
    weights = model.state_dict()
    changed = 0

    def replacement(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        nonlocal changed
        if name not in weights:
            return None
        trained: torch.Tensor = weights[name].to(torch.bfloat16).cpu()
        changed += int((trained != tensor.to(torch.bfloat16)).sum())
        return trained

    # A weight that is used twice (a tied output head) is listed once, and stored once.
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    _insist_on_names(names - _write(base, target, replacement))
    _insist_on_change(changed)


@contextmanager
def merged_in_memory(model: PeftModel, base: Path, into: MergedInto) -> Iterator[PreTrainedModel]:
    """The live model as it will be once merged; as it was on leaving. Costs two bytes for each weight that has an
    adapter, and no file.

    Raises:
        JobFailed: as ``merge``, for names.
    """
    layers = trained_layers(model)
    kept = {name: layer.base_layer for name, layer in layers.items()}
    with model.disable_adapter():
        try:
            for name, tensor in _base_tensors(base):
                if name in layers:
                    before = frozen_weight(layers[name], tensor, into)
                    layers[name].base_layer = _linear(adapted_weight(layers[name], before), layers[name])
            _insist_on_names({name for name, layer in layers.items() if layer.base_layer is kept[name]})
            yield plain_model(model)
        finally:
            for name, layer in layers.items():
                layer.base_layer = kept[name]


def trained_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Layers with an adapter, by the name of their weight in the base's files."""
    core = plain_model(model)
    return {f"{name}.weight": m for name, m in core.named_modules() if isinstance(m, LoraLayer)}


def frozen_weight(layer: LoraLayer, stored: torch.Tensor, into: MergedInto) -> torch.Tensor:
    """The weight to merge into, in bf16, (out, in): the one that the adapter was trained beside, or the ``stored``."""
    base: nn.Module = layer.get_base_layer()
    if into == "nf4":
        return _live_weight(base)
    return stored.to(device=cast(torch.Tensor, base.weight).device, dtype=torch.bfloat16)


def _live_weight(module: nn.Module) -> torch.Tensor:
    if isinstance(module, Linear4bit):
        return dequantized_weight(module)
    return cast(torch.Tensor, module.weight).data.to(torch.bfloat16)


def _linear(weight: torch.Tensor, layer: LoraLayer) -> nn.Linear:
    """A layer that multiplies with this weight and has the bias of the one below the adapter."""
    bias = cast(torch.Tensor | None, getattr(layer.get_base_layer(), "bias", None))
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.data, requires_grad=False)
    return plain


def _base_tensors(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for shard in sorted(base.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def _write(base: Path, target: Path, replacement: Replacement) -> set[str]:
    """Write ``base`` anew, shard by shard, with tensors replaced. Returns the names of those."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    replaced = set[str]()
    for shard in sorted(base.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                stored = file.get_tensor(name)
                new = replacement(name, stored)
                if new is not None:
                    replaced.add(name)
                tensors[name] = (_as_bf16(stored) if new is None else new.cpu()).contiguous()
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    for path in base.iterdir():
        if path.is_file() and path.suffix not in _NOT_COPIED and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)
    return replaced


def _as_bf16(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _insist_on_names(missing: set[str]) -> None:
    if missing:
        raise JobFailed(
            f"the base model's files have no tensors {sorted(missing)[:3]} for {len(missing)} trained layers: this "
            f"architecture stores its weights under other names than it computes with, and can't be merged yet"
        )


def _insist_on_change(changed: int) -> None:
    if changed == 0:
        raise JobFailed(
            "the merged model equals the base: training changed nothing that bf16 can hold; "
            "raise learning_rate or epochs, and look at the loss"
        )
