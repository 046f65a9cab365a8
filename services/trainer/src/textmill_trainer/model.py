"""Loads a base model in NF4 and puts LoRA on all its linear layers; CPU or one CUDA GPU, by detection.

QLoRA (Dettmers et al. 2023): NF4 weights with double quantization, frozen; bf16 arithmetic; fp32 LoRA weights.
Knows nothing of records or steps.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from textmill.errors import JobFailed
from textmill_trainer.base_model import default_folder, ensure_base_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Residence = Literal["nf4", "dequantized"]
"""How the frozen weights lie in memory: 0.55 bytes a weight, dequantized at each use; or 2, dequantized once."""


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: int
    dropout: float


def detect_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Raises ``JobFailed`` if the base has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise JobFailed(
            f"the base model in {folder} has no chat template: use an instruct model, or add chat_template.jinja"
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def fetch_base(name: str) -> Path:
    """The local folder of a base model. A Hugging Face name is fetched once; the default base is unpacked once.

    Raises:
        JobFailed: neither a folder nor a name that can be fetched.
    """
    if Path(name) == default_folder():
        return ensure_base_model(default_folder())
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (OSError, ValueError) as exc:
        raise JobFailed(
            f"base model {name!r} is neither a local folder nor a Hugging Face model that can be fetched here: {exc}"
        ) from exc


def load_nf4(folder: Path, device: torch.device) -> PreTrainedModel:
    """The base with its linear layers in NF4 (all but the output head), frozen, on ``device``."""
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=quantization, device_map={"": device}
    )
    keep_autograd(model)
    model.requires_grad_(False)
    return cast(PreTrainedModel, model)


def keep_autograd(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking ``Linear4bit`` on CPUs with AVX512-BF16.

    There, any forward under ``no_grad`` rewrites the weights in place for a kernel that has no backward: gradients of
    later steps are wrong (cosine 0.63 seen), and ``state_dict`` returns altered weights (bitsandbytes 0.50.2).
    """
    for module in linear4bits(model).values():
        module.support_avx512bf16_for_cpu = False


def linear4bits(model: nn.Module) -> dict[str, Linear4bit]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}


def dequantized_weight(module: Linear4bit) -> torch.Tensor:
    """What the layer multiplies with: its NF4 weight in bf16, (out, in)."""
    weight: torch.Tensor = dequantize_4bit(module.weight.data, cast(Params4bit, module.weight).quant_state)
    return weight.to(torch.bfloat16)


def dequantize_in_place(model: nn.Module) -> None:
    """Replace each NF4 layer by a plain linear layer that holds the same numbers in bf16.

    ``Linear4bit`` dequantizes its whole weight at each forward and backward, and the weight never changes: doing it
    once gives the same outputs, bit for bit, for 3.6 times the memory.
    """
    for name, module in linear4bits(model).items():
        weight = dequantized_weight(module)
        plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias.data, requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    # transformers keeps these to refuse what quantized models can't do.
    model.__dict__.update(is_loaded_in_4bit=False, is_quantized=False, quantization_method=None)


def choose_residence(model: nn.Module, budget_bytes: int) -> Residence:
    weights = sum(m.in_features * m.out_features for m in linear4bits(model).values())
    return "dequantized" if 2 * weights <= budget_bytes else "nf4"


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """LoRA on all linear layers but the output head. The start is a function of the seed; B is zero."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(PeftModel, get_peft_model(model, config))


def base_sha256(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
