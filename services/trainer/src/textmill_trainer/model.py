"""Loads a base model so that it can be trained: QLoRA, LoRA or all weights; CPU or one CUDA GPU, by detection.

Any causal language model of stacked linear layers that transformers loads (Llama, Qwen, Gemma, GLM and their like):
adapters go on all linear layers but the output head, found by type and not by name, so that fused ones (GLM's
``gate_up_proj``) are among them. Knows nothing of records or steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from bitsandbytes.nn.modules import Linear4bit
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LinearLora
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.bnb import Linear4bit as Linear4bitLora
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from textmill.contracts.training import AdapterKind, Method
from textmill.errors import JobFailed
from textmill_trainer.base_model import default_folder, ensure_base_model
from textmill_trainer.distributed import is_distributed, local_rank
from textmill_trainer.fused_lora import dequantized_weight, fuse
from textmill_trainer.fused_norm import fuse_norms
from textmill_trainer.packing import install

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ADAPTER = "default"
Residence = Literal["nf4", "dequantized"]
"""How the frozen weights lie in memory: 0.55 bytes a weight, dequantized at each use; or 2, dequantized once."""


@dataclass(frozen=True)
class LoraSettings:
    """``kind``: LoRA scales by alpha/rank; rsLoRA by alpha/sqrt(rank), so that a high rank learns as fast as a low one
    (Kalajdzievski 2023); DoRA also learns the length of each row of the weight (Liu et al. 2024)."""

    rank: int
    alpha: int
    dropout: float
    kind: AdapterKind = "lora"


def load_model(
    folder: Path,
    method: Method,
    device: torch.device,
    *,
    lora: LoraSettings,
    seed: int,
    dequantized_budget_bytes: int = 0,
    gradient_checkpointing: bool = False,
) -> PeftModel | PreTrainedModel:
    """The base in ``folder`` with what ``method`` trains set to require gradients, and nothing else.

    A ``PeftModel`` for qlora and lora; for full, where ``lora`` says nothing, the transformers model itself.
    ``gradient_checkpointing`` keeps one activation a layer and computes the rest again: about a third more arithmetic.
    """
    if method == "full":
        core = load_full(folder, device)
    elif method == "lora":
        core = load_16bit(folder, device)
    else:
        core = load_nf4(folder, device)
        if choose_residence(core, dequantized_budget_bytes) == "dequantized":
            dequantize_in_place(core)
    install(core)
    fuse_norms(core)
    checkpoint_activations(core, gradient_checkpointing)
    return core if method == "full" else add_lora(core, lora, seed)


def checkpoint_activations(core: PreTrainedModel, on: bool) -> None:
    """Keep one activation a layer and compute the rest again in backward; or keep them all."""
    if not on:
        core.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
        return
    # The reentrant kind drops the gradients of a stack whose input, the frozen embedding, needs none.
    core.gradient_checkpointing_enable({"use_reentrant": False})


def detect_device() -> torch.device:
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def load_tokenizer(folder: Path, chat: bool = True) -> "PreTrainedTokenizerFast":
    """Raises ``JobFailed`` if the base has no chat template and is to learn conversations (``chat``)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if chat and tokenizer.chat_template is None:
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
    """The base with its linear layers in NF4 (all but the output head), frozen, on ``device``.

    QLoRA (Dettmers et al. 2023): double quantization, bf16 arithmetic.
    """
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


def load_16bit(folder: Path, device: torch.device) -> PreTrainedModel:
    """The base in bf16, frozen."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": device})
    model.requires_grad_(False)
    return cast(PreTrainedModel, model)


def load_full(folder: Path, device: torch.device) -> PreTrainedModel:
    """The base in fp32, all of it trainable: 16 bytes a weight with gradient and AdamW's two moments.

    bf16 holds 8 bits of a number, so that a step of less than 1/512 of a weight changes nothing; at a learning rate of
    1e-5 that is every step of a weight above 0.005, which would be trained in name only. Small models, which
    full fine-tuning is for, have room for fp32, and then no second copy of the weights has to be kept in step.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: tensor cores, at bf16's range and 10 bits
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": device})
    _insist_on_stored_names(model, folder)
    model.requires_grad_(True)
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
    """An adapter on all linear layers but the output head, in fp32. Its start follows from the seed; B is zero."""
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=linear_names(model),
        use_rslora=settings.kind == "rslora",
        use_dora=settings.kind == "dora",
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = cast(PeftModel, get_peft_model(model, config))
    fuse(adapted, join=not is_distributed())
    return adapted


def linear_names(model: PreTrainedModel) -> list[str]:
    """The last part of the names of all linear layers but the output head: ``q_proj``, ``down_proj`` and so on.

    peft's own "all-linear" also wraps the experts of a mixture, which are one tensor and no layer, and which neither
    NF4 nor the merge knows; they stay as they are.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = (name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head)
    return sorted({name.rpartition(".")[2] for name in found})


def _insist_on_stored_names(model: PreTrainedModel, folder: Path) -> None:
    """What can't be published under the base's own names is refused before hours of training, not after."""
    stored: set[str] = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            stored.update(file.keys())
    if missing := sorted({name for name, _ in model.named_parameters()} - stored):
        raise JobFailed(
            f"the base model's files have no tensors {missing[:3]} for {len(missing)} weights: this architecture "
            f"stores them under other names than it computes with, so method 'full' can't publish it; use qlora or lora"
        )


def adapted_weight(layer: LoraLayer, frozen: torch.Tensor) -> torch.Tensor:
    """What the layer would multiply with if its adapter were a part of ``frozen``: (out, in) in fp32.

    DoRA gives each row the length it has learnt: m (W + dW) / |W + dW| (Liu et al. 2024, eq. 5).

    Raises:
        JobFailed: the adapter is on something else than a linear layer.
    """
    if not isinstance(layer, LinearLora | Linear4bitLora):
        raise JobFailed(f"can't merge an adapter of type {type(layer).__name__}: train linear layers only")
    weight: torch.Tensor = frozen.float() + layer.get_delta_weight(_ADAPTER).float()
    if _ADAPTER not in layer.lora_magnitude_vector:
        return weight
    magnitude = cast(torch.Tensor, layer.lora_magnitude_vector[_ADAPTER].weight).float()
    rescaled: torch.Tensor = weight * (magnitude / weight.norm(dim=1))[:, None]
    return rescaled
