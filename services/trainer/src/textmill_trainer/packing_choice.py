"""Decides whether a run packs its records, proves on its own model that packed records don't see each other, and
reports what packing and a budget of tokens spare.
"""

# ruff: noqa: N803, N806 (tensor names carry their axes)

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedModel

from textmill.contracts.packing import PackingReport
from textmill_trainer.batches import Batch, Rows, collate, cut, given, pack
from textmill_trainer.loop import LoopSettings, plan_steps
from textmill_trainer.loss import supervised_logits
from textmill_trainer.packing import install
from textmill_trainer.prepare import Example, dataset_digest

Record = Sequence[Example]
"""What is in a step as a whole: one example, or both answers of a preference pair."""
MIN_SPARED_SHARE = 0.05
"""On the CPU attention spreads packed records over padded rows and back; below this share that costs what it spares."""
_COMPARED = 6
_PART_OF_LEAK = 0.25
_STEPS_LOOKED_AT = 256


@dataclass(frozen=True)
class Isolation:
    """Relative differences of logits from those of records alone: of packed records, and of ones left to leak."""

    difference: float
    leak: float

    @property
    def holds(self) -> bool:
        return self.difference <= _PART_OF_LEAK * self.leak


def choose_packing(
    wanted: Literal["auto", "on", "off"],
    model: PreTrainedModel,
    records: Sequence[Record],
    settings: LoopSettings,
    *,
    share: bool,
) -> PackingReport:
    """Give the model attention for packed rows if they are to be used. The report says whether and why. ``share`` lets
    records share their beginnings."""
    report = lay_out(records, settings, share=share)
    device, spared = model.device, report.spared_share or 0.0
    worth = device.type == "cuda" or spared >= MIN_SPARED_SHARE
    if wanted == "off":
        return report.model_copy(update={"reason": "as asked for"})
    if wanted == "auto" and not worth:
        why = f"only {spared:.1%} of positions are padding or beginnings in common"
        return report.model_copy(update={"reason": why})
    if not install(model):
        return report.model_copy(update={"reason": "this architecture's attention can't be packed"})
    shown = sorted(records, key=_length)[len(records) // 2 :][:_COMPARED]
    row = cut(shown, _length, settings.max_padded_tokens, packed=True)[0]
    found = measure_isolation(model, _examples(row), device, share=share)
    measured = {"difference": found.difference, "leak": found.leak}
    if not found.holds:
        why = f"packed records differ by {found.difference:.1e} from the same alone: they see each other"
        return report.model_copy(update={**measured, "reason": why})
    what = "padding, or beginnings in common" if share else "padding"
    why = f"{spared:.1%} of positions would be {what}"
    return report.model_copy(update={**measured, "packed": True, "shared": share, "reason": why})


def lay_out(all_records: Sequence[Record], settings: LoopSettings, *, share: bool) -> PackingReport:
    """What an epoch comes to both ways, from as many steps as are enough to tell."""
    lengths = [_length(r) for r in all_records]
    digest = dataset_digest(_examples(all_records))
    plan = plan_steps(lengths, digest, settings)
    records = padded = tokens = kept = microbatches = packed_microbatches = 0
    for step in range(min(plan.total_steps, _STEPS_LOOKED_AT)):
        place = plan.at(step)
        if place.epoch > 1:
            break
        batch = [all_records[i] for i in place.records]
        parts = cut(batch, _length, settings.max_padded_tokens)
        records += len(batch)
        tokens += sum(map(_given, _examples(batch)))
        padded += sum(len(_examples(part)) * max(map(_given, _examples(part))) for part in parts)
        microbatches += len(parts)
        rows = cut(batch, _length, settings.max_padded_tokens, packed=True)
        kept += sum(pack(_examples(row), share=share).token_ids_BT.numel() for row in rows)
        packed_microbatches += len(rows)
    epochs = len(all_records) / records
    counting = plan_steps(lengths, digest, replace(settings, step_tokens=None))
    return PackingReport(
        packed=False,
        reason="",
        records=len(all_records),
        tokens=sum(lengths),
        padding_share=1 - tokens / padded,
        spared_share=1 - kept / padded,
        rows_padded=len(_examples(all_records)),
        microbatches_padded=round(microbatches * epochs),
        microbatches_packed=round(packed_microbatches * epochs),
        step_tokens=settings.step_tokens,
        step_tokens_used=plan.step_tokens is not None,
        steps=plan.total_steps,
        steps_counting_records=counting.total_steps,
    )


@torch.no_grad()
def measure_isolation(
    model: PreTrainedModel, examples: Sequence[Example], device: torch.device, *, share: bool = False
) -> Isolation:
    """Three forward passes over a few records, with dropout off."""
    was_training = model.training
    model.train(False)
    packed = pack(examples, share=share).to(device)
    alone_NV = torch.cat([_logits(model, collate([e]).to(device)) for e in examples])
    difference = _relative(_logits(model, packed), alone_NV)
    leak = _relative(_logits(model, _leaking(packed)), alone_NV)
    model.train(was_training)
    return Isolation(difference, leak)


def _leaking(batch: Batch) -> Batch:
    """The same row as if it were a single record."""
    rows, length = batch.rows, batch.token_ids_BT.shape[1]
    if rows is None:
        raise ValueError("not a packed batch")
    every_T = torch.arange(length, device=rows.paths_S.device)
    bounds_R1 = torch.tensor([0, length], dtype=torch.int32, device=every_T.device)
    single = Rows(rows.positions_BT, every_T, torch.ones_like(every_T, dtype=torch.bool), bounds_R1, length)
    return replace(batch, rows=single)


def _logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return supervised_logits(model, batch)


def _relative(found_NV: torch.Tensor, expected_NV: torch.Tensor) -> float:
    return float((found_NV - expected_NV).norm() / expected_NV.norm())


def _examples(records: Sequence[Record]) -> list[Example]:
    return [example for record in records for example in record]


def _length(record: Record) -> int:
    return sum(len(example.token_ids) for example in record)


def _given(example: Example) -> int:
    return len(given(example))
