"""The attention that training uses: transformers' SDPA, but quick on short CPU rows and able to keep records apart.

A packed row holds several records back to back. Their positions restart, and each may attend to itself alone. On CUDA
in 16 bits that is one call of torch's flash attention for sequences of varying length. Elsewhere the records are
spread over padded rows inside the attention only, where padding is cheap, while all linear layers, which are nine
tenths of the work, see none: a mask over the whole row would cost its length squared.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes: B rows, K key heads, G queries' heads a key head, T, D)

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textmill_trainer.batches import Batch

ATTENTION = "textmill"
SHORT_TOKENS = 512
"""Rows up to this long have their T x T scores in memory on the CPU: the backward of torch's fused kernel takes ten
times as long at 38 tokens (10.6 against 1.0 ms for 8 rows of 9 heads), and needs a copy of each shared key head."""
_HALF = (torch.bfloat16, torch.float16)
_packed_now: ContextVar[bool] = ContextVar("packed_now", default=False)


def install(model: PreTrainedModel) -> bool:
    """Give the model this attention. False if its architecture has one of its own: then it can't be packed."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, _mask)
        with suppress(ValueError):
            model.set_attn_implementation(ATTENTION)
    return bool(model.config._attn_implementation == ATTENTION)


def attention(
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
    """As transformers calls an attention function; returns (B, T, H, D). ``cu_seq_lens_q`` says that it is packed."""
    if cu_seq_lens_q is None or max_length_q is None:
        return _rows_attend(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, dropout, scaling, **options)
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
    out_RLHD, _ = _rows_attend(module, query, key, value, mask, dropout, scaling)
    return out_RLHD.flatten(0, 1).index_select(0, kept)[None], None


def _rows_attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Each row by itself, (B, H, T, D) to (B, T, H, D)."""
    causal = mask is None and query.shape[2] == key.shape[2] and options.get("is_causal") in (None, True)
    short = query.device.type == "cpu" and query.shape[2] <= SHORT_TOKENS
    if causal and short and not dropout and getattr(module, "is_causal", True):
        return short_causal(query, key, value, scaling or query.shape[-1] ** -0.5), None
    return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **options)


def short_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention in fp32 by plain matrices. The heads that share a key are its rows, so that none is copied.

    query (B, K * G, T, D), key and value (B, K, T, D); returns (B, T, K * G, D) in the query's type.
    """
    (rows, heads, length, size), shared = query.shape, key.shape[1]
    query_ = (query.float() * scaling).reshape(rows * shared, -1, size)
    key_, value_ = (t.float().reshape(rows * shared, length, size) for t in (key, value))
    mask = _later(length, heads // shared).expand(rows * shared, -1, -1)
    weights = torch.softmax(torch.baddbmm(mask, query_, key_.transpose(1, 2)), -1)
    out = torch.bmm(weights, value_).view(rows, heads, length, size)
    return out.transpose(1, 2).to(query.dtype).contiguous()


@lru_cache(maxsize=32)
def _later(length: int, times: int) -> torch.Tensor:
    """Minus infinity where a token would see a later one, (times * T, T); made once for all layers."""
    return torch.full((length, length), float("-inf")).triu_(1).repeat(times, 1)


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
