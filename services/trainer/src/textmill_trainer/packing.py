"""The attention that training uses: transformers' SDPA, but quick on short CPU rows and able to keep records apart.

A packed row holds several records, whose positions restart, and each may attend to itself alone. Attention lays them
out once more, each by itself: on CUDA in 16 bits one behind the other, for one call of torch's flash attention for
sequences of varying length; elsewhere as padded rows. Padding is cheap there, and so is a beginning that records share
and each has again; the linear layers, which are nine tenths of the work, see neither. A mask over the whole row would
cost its length squared.
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

from textmill_trainer.batches import Batch, Places, Rows

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
    rows: Rows | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention function; returns (B, T, H, D). ``rows`` says that it is packed."""
    if rows is None:
        return _rows_attend(module, query_1HTD, key_1HTD, value_1HTD, attention_mask, dropout, scaling, **options)
    window = sliding_window if sliding_window and sliding_window < rows.longest else None
    flash = query_1HTD.is_cuda and query_1HTD.dtype in _HALF and not dropout
    places = rows.joined if flash else rows.padded
    query, key, value = (_lay(t, places) for t in (query_1HTD, key_1HTD, value_1HTD))
    if flash:
        out_SHD = varlen_attn(
            query, key, value, rows.bounds_R1, rows.bounds_R1, rows.longest, rows.longest, scale=scaling,
            window_size=(window - 1 if window else -1, 0), enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    else:
        query, key, value = (t.view(-1, rows.longest, *t.shape[1:]).transpose(1, 2) for t in (query, key, value))
        mask = _band(rows.longest, window, query.device) if window else None
        out_RLHD, _ = _rows_attend(module, query, key, value, mask, dropout, scaling)
        out_SHD = out_RLHD.flatten(0, 1)
    return cast(torch.Tensor, out_SHD).index_select(0, places.homes_T)[None], None


def _lay(packed_1HTD: torch.Tensor, places: Places) -> torch.Tensor:
    """(1, H, T, D) to (S, H, D). Gradients of a token's places are summed in fp32."""
    return packed_1HTD[0].transpose(0, 1).float().index_select(0, places.tokens_S).to(packed_1HTD.dtype)


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


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Causal, and no further back than the window, (1, 1, L, L)."""
    at_L = torch.arange(length, device=device)
    back_LL = at_L[:, None] - at_L
    return ((back_LL >= 0) & (back_LL < window))[None, None]


@contextmanager
def packed_row(batch: Batch) -> Iterator[dict[str, Any]]:
    """Around the forward of a batch: what the model is to be called with, beside its tokens."""
    if batch.rows is None:
        yield {}
        return
    token = _packed_now.set(True)
    try:
        yield {"position_ids": batch.rows.positions_BT, "rows": batch.rows}
    finally:
        _packed_now.reset(token)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """None for a packed row, whose records the attention itself keeps apart; else as SDPA's."""
    return None if _packed_now.get() else sdpa_mask(*args, **kwargs)
