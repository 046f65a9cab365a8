"""Merges an adapter into the weights it was trained on, and proves that the result is the model that was trained.

The adapter was trained on the NF4 weights, so it is merged into those, dequantized: merging into the 16-bit base is
another model (mean KL 5e-4 against 8e-6), and peft's own merge quantizes again. The sum is taken in fp32 and rounded
to bf16 once. Files, tensor names, tokenizer and chat template are the base's own. Knows no store.
"""

# ruff: noqa: N806 (tensor names carry their axes)

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as LinearLora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as Linear4bitLora
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel

from textmill.contracts.runs import MergeCheck
from textmill.errors import JobFailed
from textmill_trainer.batches import collate, microbatches
from textmill_trainer.loop import plain_model
from textmill_trainer.loss import CHUNK_POSITIONS, fast_attention, supervised_logits
from textmill_trainer.model import dequantized_weight
from textmill_trainer.prepare import Example

_NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md"}


def merge(model: PeftModel, base: Path, target: Path) -> None:
    """Write the merged model as a folder like ``base``, one tensor at a time in memory beside the live model.

    Raises:
        JobFailed: a trained layer has no tensor of its name in the base's files, or the merged weights equal the base.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    layers = trained_layers(model)
    changed, merged = 0, set[str]()
    for shard in sorted(base.glob("*.safetensors")):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                layer = layers.get(name)
                if layer is None:
                    tensors[name] = _as_bf16(file.get_tensor(name))
                    continue
                before = frozen_weight(layer)
                tensors[name] = (before.float() + _delta(layer)).to(torch.bfloat16).cpu()
                changed += int((tensors[name] != before.cpu()).sum())
                merged.add(name)
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    if missing := sorted(set(layers) - merged):
        raise JobFailed(
            f"the base model's files have no tensors {missing[:3]} for {len(missing)} trained layers: this "
            f"architecture stores its weights under other names than it computes with, and can't be merged yet"
        )
    if changed == 0:
        raise JobFailed(
            "the merged model equals the base: training changed nothing that bf16 can hold; "
            "raise learning_rate or epochs, and look at the loss"
        )
    for path in base.iterdir():
        if path.is_file() and path.suffix not in _NOT_COPIED and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)


def trained_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Layers with an adapter, by the name of their weight in the base's files."""
    core = plain_model(model)
    return {f"{name}.weight": m for name, m in core.named_modules() if isinstance(m, LoraLayer)}


def frozen_weight(layer: LoraLayer) -> torch.Tensor:
    """The weight that the adapter was trained beside, in bf16, (out, in)."""
    base = layer.get_base_layer()
    if isinstance(base, Linear4bit):
        return dequantized_weight(base)
    return cast(torch.Tensor, base.weight.data)


@torch.no_grad()
def check_merge(model: PeftModel, merged: Path, examples: Sequence[Example], max_padded_tokens: int) -> MergeCheck:
    """Compare the merged folder, as loaded from disk, with the live adapter at supervised tokens of ``examples``."""
    live = plain_model(model)
    live.train(False)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        merged, dtype=torch.bfloat16, device_map={"": live.device}
    )
    kl_sum, agreed, tokens = 0.0, 0, 0
    for part in microbatches(examples, max_padded_tokens):
        batch = collate(part).to(live.device)
        with fast_attention(batch):
            live_logits_NV, loaded_logits_NV = supervised_logits(live, batch), supervised_logits(loaded, batch)
        for live_NV, loaded_NV in zip(
            torch.split(live_logits_NV, CHUNK_POSITIONS), torch.split(loaded_logits_NV, CHUNK_POSITIONS), strict=True
        ):
            kl_sum += kl_div(
                log_softmax(loaded_NV, -1), log_softmax(live_NV, -1), reduction="sum", log_target=True
            ).item()
            agreed += int((live_NV.argmax(-1) == loaded_NV.argmax(-1)).sum())
            tokens += len(live_NV)
    return MergeCheck(mean_kl=kl_sum / tokens, top1_agreement=agreed / tokens, tokens=tokens)


def _delta(layer: LoraLayer) -> torch.Tensor:
    if not isinstance(layer, LinearLora | Linear4bitLora):
        raise JobFailed(f"can't merge an adapter of type {type(layer).__name__}: train linear layers only")
    delta: torch.Tensor = layer.get_delta_weight("default")
    return delta.float()


def _as_bf16(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
