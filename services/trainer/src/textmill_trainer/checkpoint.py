"""Checkpoints of a run on local disk: written whole or not at all.

A checkpoint folder holds the trained weights, the optimizer, the position in the run, and what the run has written so
far: metrics, record losses, and the best weights, if others were better. Knows no loop and no store.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from textmill.errors import JobFailed
from textmill_trainer.digests import weights_digest

WEIGHTS_FILE = "weights.safetensors"
_POSITION_FILE = "position.json"
_STATE_FILE = "state.pt"
_PREFIX = "step-"


@dataclass(frozen=True)
class Position:
    """How far a run is, and of which run: ``run_digest`` hashes data and settings. ``digest`` is the last of the
    chain, ``weights`` the hash of the weights in the checkpoint."""

    step: int
    run_digest: str
    digest: str
    weights: str


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path, weights: Mapping[str, torch.Tensor], optimizer: Optimizer, position: Position, written: Iterable[Path]
) -> Path:
    """Write ``folder/step-<n>`` by write-then-rename with copies of the ``written`` files that exist, and drop older
    ones. Returns it."""
    target = folder / f"{_PREFIX}{position.step:08d}"
    if target.exists():
        # Whole, and the same: removing it first would leave a moment without any.
        return target
    for torn in folder.glob(f".{_PREFIX}*"):
        shutil.rmtree(torn, ignore_errors=True)
    work = folder / f".{target.name}"
    work.mkdir(parents=True)
    save_weights(weights, work / WEIGHTS_FILE)
    torch.save({"optimizer": optimizer.state_dict()}, work / _STATE_FILE)
    for path in written:
        if path.exists():
            shutil.copyfile(path, work / path.name)
    (work / _POSITION_FILE).write_text(json.dumps(asdict(position)))
    for path in work.iterdir():
        _sync(path)
    work.rename(target)
    _sync(folder)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.exists() else []


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def load_checkpoint(
    checkpoint: Path, weights: Mapping[str, torch.Tensor], optimizer: Optimizer, run_digest: str
) -> Position:
    """Put weights and optimizer back where the checkpoint was taken.

    Raises:
        JobFailed: the checkpoint is of a run with other data or settings, or its weights aren't those it was made of.
    """
    position = Position(**json.loads((checkpoint / _POSITION_FILE).read_text()))
    if position.run_digest != run_digest:
        raise JobFailed(
            f"checkpoint {checkpoint.name} belongs to a run with other records or settings "
            f"({position.run_digest[:12]} is not {run_digest[:12]}): start a new run instead of resuming this one"
        )
    load_weights(checkpoint / WEIGHTS_FILE, weights)
    if (found := weights_digest(weights)) != position.weights:
        raise damaged(checkpoint, f"its weights hash to {found[:12]}, {position.weights[:12]} were saved")
    state = torch.load(checkpoint / _STATE_FILE, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    return position


def damaged(checkpoint: Path, why: str) -> JobFailed:
    return JobFailed(f"checkpoint {checkpoint.name} is damaged: {why}. Start a new run, and look at the disk and store")


def save_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write-then-rename."""
    work = path.with_name(f".{path.name}")
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, work)
    work.rename(path)


@torch.no_grad()
def load_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Fill ``weights`` in place. Raises ``JobFailed`` if the file has others."""
    saved = load_file(path)
    if saved.keys() != weights.keys():
        odd = sorted(saved.keys() ^ weights.keys())
        raise JobFailed(f"{path.name} holds other weights than are trained: {odd[:3]} are on one side only")
    for name, tensor in weights.items():
        tensor.copy_(saved[name])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
