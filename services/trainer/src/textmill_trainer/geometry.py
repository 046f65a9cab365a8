"""The shape of a model, read from its folder without loading it: config.json, and the headers of its safetensors.

The headers are exact. Without weights the shape follows from the config, for llama-like models, Qwen, Gemma and GLM.
A safetensors file starts with the length of its header, 8 bytes little-endian, then that many bytes of JSON
(https://github.com/huggingface/safetensors). Knows no torch.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from textmill.errors import JobFailed

T = TypeVar("T")
_NOT_ADAPTED = ("embed", "wte", "wpe", "lm_head", "output_layer")
"""Parts of the names of matrices that are no linear layer of the stack."""
_UNGATED = ("gpt2", "gpt_neox", "opt", "phi", "gptj", "gpt_bigcode", "starcoder2")
_FUSED_MLP = ("glm", "glm4", "chatglm", "phi3")
_FUSED_ATTENTION = ("chatglm", "phi3")
"""Families that multiply with several matrices stacked into one, which then share one adapter."""
_FOUR_NORMS = ("gemma2", "gemma3", "gemma3_text", "glm4")
_HEAD_NORMS = ("qwen3", "gemma3", "gemma3_text")
_TIED_BY_DEFAULT = ("gemma", "gpt2", "cohere")
"""Families whose config.json leaves ``tie_word_embeddings`` out because True is their default."""
_MAX_HEADER_BYTES = 100 << 20
"""The format's own limit."""


@dataclass(frozen=True)
class Geometry:
    """``linears`` are the (out, in) of every linear layer but the output head; ``parameters`` counts each weight once.

    ``norms`` of a layer are as wide as the residual stream; with ``head_norms`` queries and keys are normalized too.
    ``exact`` says that the counts are those of the weights themselves, not worked out from the config.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    gated: bool
    norms: int
    head_norms: bool
    linears: tuple[tuple[int, int], ...]
    parameters: int
    exact: bool = False

    @property
    def linear_parameters(self) -> int:
        return sum(out * into for out, into in self.linears)

    def adapter_parameters(self, rank: int, dora: bool = False) -> int:
        """A is (rank, in), B is (out, rank); DoRA adds a length for each row."""
        return sum(rank * (out + into) + (out if dora else 0) for out, into in self.linears)


def read_geometry(folder: Path) -> Geometry:
    """Of a local model folder.

    Raises:
        JobFailed: no config.json, or one without the fields that give a transformer its shape.
    """
    path = folder / "config.json"
    if not path.exists():
        raise JobFailed(f"{folder} has no config.json: it is no model folder in the Hugging Face form")
    config = json.loads(path.read_text())
    shapes = dict(_tensor_shapes(folder))
    return of_shapes(of_config(config), shapes) if shapes else of_config(config)


def of_config(config: Mapping[str, object]) -> Geometry:
    """From config.json alone. Mixtures of experts come out too small: their weights tell."""
    nested = config.get("text_config")
    if isinstance(nested, Mapping):
        config = {**config, **nested}
    family = str(config.get("model_type", "unknown"))
    hidden, layers, heads = (
        _first(config, int, "hidden_size", "n_embd", "d_model"),
        _first(config, int, "num_hidden_layers", "num_layers", "n_layer"),
        _first(config, int, "num_attention_heads", "n_head"),
    )
    kv_heads = _first(config, int, "num_key_value_heads", "multi_query_group_num", default=heads)
    head_dim = _first(config, int, "head_dim", "kv_channels", default=hidden // heads)
    intermediate = _first(config, int, "intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    vocab = _first(config, int, "padded_vocab_size", "vocab_size")
    tied = _first(config, bool, "tie_word_embeddings", default=family.startswith(_TIED_BY_DEFAULT))
    gated = family not in _UNGATED
    query, key = heads * head_dim, kv_heads * head_dim
    projections = [(query + 2 * key, hidden)] if family in _FUSED_ATTENTION else [(query, hidden), *[(key, hidden)] * 2]
    up = [(2 * intermediate, hidden)] if family in _FUSED_MLP else [(intermediate, hidden)] * (2 if gated else 1)
    linears = tuple([*projections, (hidden, query), *up, (hidden, intermediate)] * layers)
    small = layers * _small_weights(config, family, hidden, query, key, head_dim) + hidden
    embeddings = vocab * hidden * (1 if tied else 2)
    parameters = sum(out * into for out, into in linears) + small + embeddings
    return Geometry(
        family, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied, gated,
        4 if family in _FOUR_NORMS else 2, family in _HEAD_NORMS, linears, parameters,
    )  # fmt: skip


def of_shapes(guess: Geometry, shapes: Mapping[str, tuple[int, ...]]) -> Geometry:
    """With the counts of the weights themselves: ``shapes`` by tensor name."""
    linears = tuple(
        (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _NOT_ADAPTED)
    )
    heads = [name for name in shapes if any(part in name for part in ("lm_head", "output_layer"))]
    return Geometry(
        **{
            **guess.__dict__,
            "tied": not heads,
            "linears": linears,
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "exact": True,
        }
    )


def _small_weights(config: Mapping[str, object], family: str, hidden: int, query: int, key: int, head_dim: int) -> int:
    """Norms and biases of one layer."""
    norms = hidden * (4 if family in _FOUR_NORMS else 2) + (2 * head_dim if family in _HEAD_NORMS else 0)
    has_bias = _first(config, bool, "attention_bias", "add_qkv_bias", "qkv_bias", default=family == "qwen2")
    bias = query + 2 * key if has_bias else 0
    # Llama's own bias is on the output too; Qwen's and GLM's is on query, key and value alone.
    return norms + bias + (hidden if has_bias and family == "llama" else 0)


def _first(config: Mapping[str, object], kind: type[T], *names: str, default: T | None = None) -> T:
    for name in names:
        value = config.get(name)
        if isinstance(value, kind):
            return value
    if default is None:
        raise JobFailed(f"config.json has none of {', '.join(names)}: what kind of model is this?")
    return default


def _tensor_shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise JobFailed(f"{path.name} claims a header of {length} bytes: it is no safetensors file, or torn")
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, tuple(tensor["shape"])
