"""Cross-entropy at the supervised positions only.

The output head is the largest matrix of a small model (49k x 576 in SmolLM2-135M, a fifth of it), and its fp32 logits
are the largest tensor of all: they are computed only where there is a loss, chunk by chunk, and where the head is
frozen only once: the gradient of what goes into it is made while they are there. Knows no optimizer.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

from typing import Any, cast

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
    if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
        losses_N: torch.Tensor = FrozenHeadLosses.apply(hidden_ND, head.weight, targets_N)
        return losses_N
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


class FrozenHeadLosses(torch.autograd.Function):
    """Negative log-likelihoods of ``targets_N`` under a head without bias. Each depends on its own row of hidden states
    alone, so that row's gradient is known but for a factor, and no logits are kept (as Liger's kernel does on GPUs:
    Hsu et al. 2024, arXiv 2410.10989)."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
        gradient_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_N), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            target_C1 = targets_N[chunk, None]
            chances_CV = torch.log_softmax((hidden_ND[chunk] @ weight_VD.t()).float(), -1)
            losses_N[chunk] = -chances_CV.gather(1, target_C1)[:, 0]
            if gradient_ND is not None:
                chances_CV.exp_().scatter_add_(1, target_C1, chances_CV.new_full(target_C1.shape, -1.0))
                torch.mm(chances_CV.to(hidden_ND.dtype), weight_VD, out=gradient_ND[chunk])
        if gradient_ND is not None:
            ctx.save_for_backward(gradient_ND)
        return losses_N

    @staticmethod
    def backward(ctx: Any, factors_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * factors_N[:, None]).to(gradient_ND.dtype), None, None


def _shapes_logits(model: PreTrainedModel) -> bool:
    return any(getattr(model.config, name, None) for name in _SHAPED_LOGITS)
