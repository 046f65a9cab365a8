"""Peak memory of a training step, by formula, from a model's geometry: what takes how many bytes, and why. No torch.

Weights, adapter, gradients and optimizer state are exact. Activations follow what autograd keeps for backward in
transformers' llama-like layers under peft, term by term; a test holds them to what torch keeps. Not counted: the
interpreter and its libraries, CUDA's context and kernels' workspaces, which the probe step sees.
"""

from dataclasses import dataclass

from textmill.contracts.trainforecast import MemoryTerm
from textmill.contracts.training import AdapterKind, Method
from textmill_trainer.geometry import Geometry

SHORT_TOKENS = 512
"""Rows up to this long go through plain matrices on the CPU, T x T scores and all (see ``packing.short_causal``)."""
CHUNK_POSITIONS = 1_024
"""Positions whose logits are there at once (see ``loss.CHUNK_POSITIONS``)."""
_NF4_BLOCK, _ABSMAX_BLOCK = 64, 256
"""QLoRA's double quantization: half a byte a weight, a byte of scale for 64, a float for 256 of those (2305.14314)."""
_NF4_TABLES_BYTES = 4 * (256 + 16 + 1)
"""Of each quantized matrix: the tables of both codes and the scales' mean, in fp32 (bitsandbytes' ``QuantState``)."""
_CPU_SCRATCH_BYTES = 256 << 20
"""Packed copies and fragments that came on top of the tensors: 184 to 254 MB seen, whatever the shapes."""


@dataclass(frozen=True)
class Load:
    """What a step has to hold. ``padded_tokens`` is rows x ``longest`` of the largest microbatch; ``scored`` of them
    have a loss. ``dequantized`` says how QLoRA's frozen weights lie in memory."""

    method: Method
    padded_tokens: int
    longest: int
    scored: int
    rank: int = 16
    adapter: AdapterKind = "lora"
    dropout: bool = False
    dequantized: bool = True
    gradient_checkpointing: bool = False
    cuda: bool = False

    @property
    def stack_bytes(self) -> int:
        """Of one value in the stack: bf16 below an adapter, whose own arithmetic is fp32; all fp32 in full."""
        return 4 if self.method == "full" else 2


def peak(geometry: Geometry, load: Load) -> list[MemoryTerm]:
    """What is there at the fullest moment: at the end of forward, or while one layer is in backward."""
    terms = resident(geometry, load) + growth(geometry, load)
    return [term for term in terms if term.bytes]


def resident(geometry: Geometry, load: Load) -> list[MemoryTerm]:
    """There as soon as the model is loaded."""
    return [
        MemoryTerm(what="base weights", bytes=weight_bytes(geometry, load)),
        MemoryTerm(what="adapter, fp32", bytes=0 if load.method == "full" else 4 * trained(geometry, load)),
    ]


def growth(geometry: Geometry, load: Load) -> list[MemoryTerm]:
    """What a step adds, and the optimizer keeps: fp32 gradients, AdamW's two fp32 moments, activations, logits."""
    count = trained(geometry, load)
    return [
        MemoryTerm(what="gradients, fp32", bytes=4 * count),
        MemoryTerm(what="AdamW's moments, fp32", bytes=8 * count),
        MemoryTerm(what="activations kept for backward", bytes=activation_bytes(geometry, load)),
        MemoryTerm(
            what="logits, or a layer's backward", bytes=max(logit_bytes(geometry, load), backward_bytes(geometry, load))
        ),
        MemoryTerm(what="scratch of the CPU's kernels", bytes=0 if load.cuda else _CPU_SCRATCH_BYTES),
        MemoryTerm(what="a matrix while it is dequantized", bytes=_dequantizing_bytes(geometry, load)),
    ]


def total(terms: list[MemoryTerm]) -> int:
    return sum(term.bytes for term in terms)


def trained(geometry: Geometry, load: Load) -> int:
    """Weights that require gradients."""
    if load.method == "full":
        return geometry.parameters
    return geometry.adapter_parameters(load.rank, dora=load.adapter == "dora")


def weight_bytes(geometry: Geometry, load: Load) -> int:
    """4 bytes for full fine-tuning, 2 for what is in bf16, half a byte and its scales for NF4. Exact."""
    if load.method == "full":
        return 4 * geometry.parameters
    if load.method == "lora" or load.dequantized:
        return 2 * geometry.parameters
    kept = 2 * (geometry.parameters - geometry.linear_parameters)
    return kept + sum(_nf4_bytes(out * into) for out, into in geometry.linears)


def _nf4_bytes(weights: int) -> int:
    blocks = -(-weights // _NF4_BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // _ABSMAX_BLOCK) + _NF4_TABLES_BYTES


def activation_bytes(geometry: Geometry, load: Load) -> int:
    """What autograd keeps. With gradient checkpointing the input of each layer, and all of one layer at a time."""
    layer = layer_activation_bytes(geometry, load)
    last_norm = norm_bytes(load) * load.padded_tokens * geometry.hidden
    if not load.gradient_checkpointing:
        return layer * geometry.layers + last_norm
    kept = load.stack_bytes * load.padded_tokens * geometry.hidden * geometry.layers
    return kept + layer + last_norm


def layer_activation_bytes(geometry: Geometry, load: Load) -> int:
    """Of one layer, by what keeps it:

    - each norm its input, in fp32 where it isn't fused;
    - gate, its activation, and up, which are multiplied with each other;
    - fused adapters their inputs, once where several read the same, A's output, and A and B in the stack's type;
    - with dropout or DoRA each adapter its input in fp32, a copy for each even where several read the same, and A's
      output; dropout a mask of the same size (peft 0.21's ``lora.Linear``); DoRA its two products' results;
    - full fine-tuning the inputs of the linear layers, once where several read the same, and the normalized hidden;
    - attention: see ``attention_bytes``.
    """
    tokens, hidden, width = load.padded_tokens, geometry.hidden, load.stack_bytes
    query, key = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    normed = geometry.norms * hidden + (query + key if geometry.head_norms else 0)
    per_token = norm_bytes(load) * normed + (3 if geometry.gated else 2) * width * geometry.intermediate
    linears = geometry.linears[: max(1, len(geometry.linears) // geometry.layers)]
    inputs = sum(into for _, into in linears)
    adapter = 0
    if load.method == "full":
        per_token += 4 * (normed + 2 * hidden + query + geometry.intermediate)
    elif fused_adapter(load):
        per_token += width * (2 * hidden + query + geometry.intermediate + load.rank * len(linears))
        adapter = width * load.rank * sum(into + out for out, into in linears)
    else:
        per_token += 4 * inputs * (2 if load.dropout else 1) + 4 * load.rank * len(linears)
        if load.adapter == "dora":
            per_token += 4 * 2 * sum(out for out, _ in linears)
    return tokens * per_token + adapter + attention_bytes(geometry, load)


def norm_bytes(load: Load) -> int:
    """Of each number that goes into a norm (see ``fused_norm``)."""
    return load.stack_bytes if not load.cuda and load.method != "full" else 4


def fused_adapter(load: Load) -> bool:
    """See ``fused_lora``."""
    return load.method != "full" and load.adapter != "dora" and not load.dropout


def attention_bytes(geometry: Geometry, load: Load) -> int:
    """Fused: query, key, value, output, and a float for each row of scores. Plain matrices on the CPU: query, key and
    value in fp32, and the T x T softmax of every head, in fp32."""
    query, key = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
    if plain_attention(load):
        return 4 * load.padded_tokens * (query + 2 * key + geometry.heads * load.longest)
    return load.padded_tokens * (load.stack_bytes * (2 * query + 2 * key) + 4 * geometry.heads)


def plain_attention(load: Load) -> bool:
    return not load.cuda and load.longest <= SHORT_TOKENS


def logit_bytes(geometry: Geometry, load: Load) -> int:
    """Of one chunk, at its fullest: log-probabilities, their gradient and the logits' own, in fp32 and the head's type.

    Without chunks all but the last two are kept until backward, which begins with them; behind a frozen head nothing
    of them is kept, and the log-probabilities become their own gradient.
    """
    return min(load.scored, CHUNK_POSITIONS) * geometry.vocab * (4 + 4 + load.stack_bytes)


def backward_bytes(geometry: Geometry, load: Load) -> int:
    """Beside what is kept, while one layer goes backward: gradients of gate, up and their product, in fp32 where they
    come out of an unfused adapter; of the residual stream; with plain attention those of scores and softmax."""
    scores = 4 * load.padded_tokens * geometry.heads * load.longest * 2 if plain_attention(load) else 0
    product = load.stack_bytes if fused_adapter(load) else 4
    mlp = load.padded_tokens * (geometry.intermediate * (product + 3 * load.stack_bytes) + 4 * geometry.hidden * 2)
    return max(mlp, scores)


def _dequantizing_bytes(geometry: Geometry, load: Load) -> int:
    """Of the largest matrix; of gate and up together, where they are one product, and once more of the one that is
    being copied into it (see ``fused_lora``)."""
    if load.method != "qlora" or load.dequantized:
        return 0
    apart = geometry.linears.count((geometry.intermediate, geometry.hidden)) >= 2 * geometry.layers
    matrices = 3 if apart and fused_adapter(load) else 1
    return 2 * matrices * max(out * into for out, into in geometry.linears)
