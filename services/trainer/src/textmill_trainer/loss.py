"""Cross-entropy at the supervised positions only.

The output head is the largest matrix of a small model (49k x 576 in SmolLM2-135M, a fifth of it), and its fp32 logits
are the largest tensor of all: they are computed only where there is a loss, and chunk by chunk. Knows no optimizer.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

from typing import cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from textmill_trainer.batches import Batch
from textmill_trainer.packing import packed_row

CHUNK_POSITIONS = 1_024
"""At 49k entries 200 MB of fp32 logits."""
_SHAPED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Configuration fields of architectures that do more to logits than the output head (Gemma 2, Cohere, Granite)."""


def supervised_losses(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood in nats, summed over the supervised tokens of each record; (R,) with a graph."""
    losses_N = _supervised_losses(model, batch, batch.targets_N)
    return torch.zeros(batch.records, device=losses_N.device).index_add(0, batch.records_N, losses_N)


def _supervised_losses(model: PreTrainedModel, batch: Batch, targets_N: torch.Tensor) -> torch.Tensor:
    if _shapes_logits(model):
        return cross_entropy(supervised_logits(model, batch), targets_N, reduction="none")
    hidden_ND = _supervised_hidden(model, batch)
    head = _head(model)
    if len(targets_N) <= CHUNK_POSITIONS:
        return _chunk_losses(head, hidden_ND, targets_N)
    chunks = zip(torch.split(hidden_ND, CHUNK_POSITIONS), torch.split(targets_N, CHUNK_POSITIONS), strict=True)
    return torch.cat([checkpoint(_chunk_losses, head, h, t, use_reentrant=False) for h, t in chunks])


def supervised_logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits that predict the supervised tokens, (N, V) in fp32."""
    if _shapes_logits(model):
        with packed_row(batch) as options:
            logits_BTV: torch.Tensor = model(input_ids=batch.token_ids_BT, use_cache=False, **options).logits
        return logits_BTV.flatten(0, 1).index_select(0, batch.places_N).float()
    logits_NV: torch.Tensor = _head(model)(_supervised_hidden(model, batch))
    return logits_NV.float()


def _head(model: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]


def _supervised_hidden(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    decoder = getattr(model, model.base_model_prefix)
    with packed_row(batch) as options:
        hidden_BTD: torch.Tensor = decoder(input_ids=batch.token_ids_BT, use_cache=False, **options).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch.places_N)


def _chunk_losses(head: nn.Module, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden_ND).float(), targets_N, reduction="none")


def _shapes_logits(model: PreTrainedModel) -> bool:
    return any(getattr(model.config, name, None) for name in _SHAPED_LOGITS)
