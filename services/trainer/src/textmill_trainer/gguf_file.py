"""Writes a model folder as one GGUF file, for llama.cpp and what is built on it.

Weights keep their type and their bits, bf16 or f16; nothing is quantized here (llama.cpp's ``llama-quantize`` does that
to the file). Architectures and tokenizers whose form in GGUF is sure are written, all others are refused. One tensor is
in memory at a time. Knows no store and no torch.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TensorNameMap, TokenType, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES

from textmill.errors import JobFailed

_ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "mistral": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2}
"""By ``model_type``. llama.cpp pairs a head's rotated numbers side by side for LLAMA, as transformers does not."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
_TYPES = {
    "BF16": ("<u2", GGMLQuantizationType.BF16),
    "F16": ("<f2", GGMLQuantizationType.F16),
    "F32": ("<f4", GGMLQuantizationType.F32),
}
_INSTEAD = "use llama.cpp's convert_hf_to_gguf.py on the merged safetensors"


@dataclass(frozen=True)
class _Tensor:
    """One tensor of a safetensors file, not read yet."""

    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray[Any, Any]:
        return np.memmap(self.file, _TYPES[self.dtype][0], "r", self.offset, self.shape)


def write_gguf(model: Path, target: Path, name: str) -> None:
    """Convert the folder ``model``; ``name`` is what readers show.

    Raises:
        JobFailed: an architecture, a position encoding or a tokenizer that can't be converted here; with what can.
    """
    config = json.loads((model / "config.json").read_text())
    architecture = _architecture(config)
    writer = GGUFWriter(target, MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    _add_shape(writer, config)
    _add_tokenizer(writer, model, config)
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    tensors = [(_gguf_name(names, t.name), t) for t in _tensors(model)]
    for gguf_name, tensor in tensors:
        is_matrix = len(tensor.shape) > 1
        kind = _TYPES[tensor.dtype if is_matrix else "F32"]
        size = int(np.prod(tensor.shape)) * np.dtype(kind[0]).itemsize
        writer.add_tensor_info(gguf_name, tensor.shape, np.dtype(kind[0]), size, raw_dtype=kind[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tensors:
        writer.write_tensor_data(np.ascontiguousarray(_arranged(tensor, config, architecture)))
    writer.close()


def _architecture(config: Mapping[str, Any]) -> MODEL_ARCH:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if config["model_type"] not in _ARCHITECTURES or scaling != "default":
        raise JobFailed(
            f"a model of type {config['model_type']!r} with {scaling!r} positions can't be written as GGUF here, only "
            f"{', '.join(_ARCHITECTURES)} with 'default' ones: {_INSTEAD}"
        )
    return _ARCHITECTURES[config["model_type"]]


def _add_shape(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: GGUFWriter, model: Path, config: Mapping[str, Any]) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer))
    tokens, types = _vocabulary(tokenizer, config["vocab_size"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    adders: dict[str, Callable[[int], None]] = {
        "bos_token_id": writer.add_bos_token_id,
        "eos_token_id": writer.add_eos_token_id,
        "pad_token_id": writer.add_pad_token_id,
    }
    for key, add in adders.items():
        if isinstance(config.get(key), int):
            add(config[key])
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    template = model / "chat_template.jinja"
    text = template.read_text() if template.exists() else settings.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)


def _splitting(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut into words before merging. Raises ``JobFailed`` for one we don't know."""
    before = tokenizer.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    kinds = [p.get("type") for p in parts]
    if tokenizer["model"]["type"] == "BPE" and not tokenizer["model"].get("byte_fallback"):
        if kinds == ["ByteLevel"] and parts[0]["use_regex"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (found := _SPLITS.get(parts[0]["pattern"].get("Regex"))):
            return found
    raise JobFailed(
        f"this tokenizer ({tokenizer['model']['type']}, cut by {kinds}) has no form in GGUF that is sure to give the "
        f"same tokens: {_INSTEAD}"
    )


def _vocabulary(tokenizer: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every id up to ``size`` with its token; ids that the tokenizer hasn't are unused ones."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for token, token_id in tokenizer["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, int(TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    return tokens, types


def _tensors(model: Path) -> Iterator[_Tensor]:
    """All tensors of the folder's safetensors files, whose header is its length (8 bytes) and JSON."""
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, info in header.items():
            if info["dtype"] not in _TYPES:
                raise JobFailed(f"tensor {name} is of type {info['dtype']}, not of {', '.join(_TYPES)}: {_INSTEAD}")
            yield _Tensor(name, path, 8 + length + info["data_offsets"][0], info["dtype"], tuple(info["shape"]))


def _gguf_name(names: TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise JobFailed(f"tensor {name} has no place in GGUF's form of this architecture: {_INSTEAD}")
    return found


def _arranged(tensor: _Tensor, config: Mapping[str, Any], architecture: MODEL_ARCH) -> np.ndarray[Any, Any]:
    """As llama.cpp wants it: vectors in fp32, and a head's rotated rows (first and second half) taken in turn."""
    data = tensor.read()
    heads = config["num_attention_heads"]
    rotated = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    layer = tensor.name.split(".")[-2]
    if architecture == MODEL_ARCH.LLAMA and layer in rotated:
        halves = data.reshape(rotated[layer], 2, -1, *tensor.shape[1:])
        data = halves.swapaxes(1, 2).reshape(tensor.shape)
    if len(tensor.shape) > 1:
        return data
    if tensor.dtype == "BF16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)
