"""Attention that keeps packed records apart.

A packed row holds several records back to back. Their positions restart, and each may attend to itself alone. On CUDA
in 16 bits that is one call of torch's flash attention for sequences of varying length. Elsewhere the records are
spread over padded rows inside the attention only, where padding is cheap, while all linear layers, which are nine
tenths of the work, see none: a mask over the whole row would cost its length squared.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textmill_trainer.batches import Batch

ATTENTION = "textmill_packed"
_HALF = (torch.bfloat16, torch.float16)
_packed_now: ContextVar[bool] = ContextVar("packed_now", default=False)


def install(model: PreTrainedModel) -> bool:
    """Give the model attention that can be packed; without packed records it is transformers' SDPA. False: it can't."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, packed_attention)
        AttentionMaskInterface.register(ATTENTION, _mask)
        with suppress(ValueError):
            model.set_attn_implementation(ATTENTION)
    return bool(model.config._attn_implementation == ATTENTION)


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention function; returns (1, T, H, D). Without ``cu_seq_lens_q`` it is SDPA."""
    if cu_seq_lens_q is None or max_length_q is None:
        return sdpa_attention_forward(
            module, query_1HTD, key_1HTD, value_1HTD, attention_mask, dropout, scaling, **options
        )
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if query_1HTD.is_cuda and query_1HTD.dtype in _HALF and not dropout:
        query_THD, key_THD, value_THD = (t[0].transpose(0, 1) for t in (query_1HTD, key_1HTD, value_1HTD))
        out_THD = varlen_attn(
            query_THD, key_THD, value_THD, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
            window_size=(window - 1 if window else -1, 0), enable_gqa=query_THD.shape[1] != key_THD.shape[1],
        )  # fmt: skip
        return cast(torch.Tensor, out_THD)[None], None
    spread, kept = _spread(cu_seq_lens_q, max_length_q)
    query, key, value = (_rows(t, spread, max_length_q) for t in (query_1HTD, key_1HTD, value_1HTD))
    mask = _band(max_length_q, window, query.device) if window else None
    out_RLHD, _ = sdpa_attention_forward(module, query, key, value, mask, dropout, scaling)
    return out_RLHD.flatten(0, 1).index_select(0, kept)[None], None


def _spread(bounds_R1: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indexes of tokens for R padded rows, (R * L,), and of those rows' real places for each token, (T,)."""
    starts_R, lengths_R = bounds_R1[:-1].long(), bounds_R1.diff().long()
    offsets_L = torch.arange(longest, device=bounds_R1.device)
    real_RL = offsets_L < lengths_R[:, None]
    # Padding repeats the record's first token: causal, so that no real token sees it.
    tokens_RL = starts_R[:, None] + offsets_L * real_RL
    return tokens_RL.flatten(), real_RL.flatten().nonzero()[:, 0]


def _rows(packed_1HTD: torch.Tensor, spread: torch.Tensor, longest: int) -> torch.Tensor:
    """(1, H, T, D) to (R, H, L, D)."""
    _, heads, _, size = packed_1HTD.shape
    return packed_1HTD[0].index_select(1, spread).view(heads, -1, longest, size).transpose(0, 1)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Causal, and no further back than the window, (1, 1, L, L)."""
    at_L = torch.arange(length, device=device)
    back_LL = at_L[:, None] - at_L
    return ((back_LL >= 0) & (back_LL < window))[None, None]


@contextmanager
def packed_row(batch: Batch) -> Iterator[dict[str, Any]]:
    """Around the forward of a batch: what the model is to be called with, beside its tokens."""
    if batch.segments is None:
        yield {}
        return
    segments = batch.segments
    token = _packed_now.set(True)
    try:
        yield {
            "position_ids": segments.positions_BT,
            "cu_seq_lens_q": segments.bounds_R1,
            "cu_seq_lens_k": segments.bounds_R1,
            "max_length_q": segments.longest,
            "max_length_k": segments.longest,
        }
    finally:
        _packed_now.reset(token)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """None for a packed row, whose records the attention itself keeps apart; else as SDPA's."""
    return None if _packed_now.get() else sdpa_mask(*args, **kwargs)
