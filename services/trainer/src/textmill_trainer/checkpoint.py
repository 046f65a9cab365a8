"""Checkpoints of a run on local disk: written whole or not at all.

A checkpoint folder holds the adapter (plain peft files), the optimizer, the random state, the position in the run and
the metrics so far. Knows no loop and no store.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.optim import Optimizer

from textmill.errors import JobFailed

ADAPTER_FILE = "adapter_model.safetensors"
METRICS_FILE = "metrics.jsonl"
_POSITION_FILE = "position.json"
_STATE_FILE = "state.pt"
_PREFIX = "step-"


@dataclass(frozen=True)
class Position:
    """How far a run is, and of which run: ``run_digest`` hashes data and settings."""

    step: int
    run_digest: str


def save_checkpoint(
    folder: Path, model: PeftModel, optimizer: Optimizer, position: Position, metrics_file: Path
) -> Path:
    """Write ``folder/step-<n>`` by write-then-rename, and drop older ones. Returns it."""
    target = folder / f"{_PREFIX}{position.step:08d}"
    work = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model.save_pretrained(str(work))
    torch.save({"optimizer": optimizer.state_dict(), "random": _random_state()}, work / _STATE_FILE)
    shutil.copyfile(metrics_file, work / METRICS_FILE)
    (work / _POSITION_FILE).write_text(json.dumps(asdict(position)))
    for path in work.iterdir():
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
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


def load_checkpoint(checkpoint: Path, model: PeftModel, optimizer: Optimizer, run_digest: str) -> Position:
    """Put model, optimizer and random state back where the checkpoint was taken.

    Raises:
        JobFailed: the checkpoint is of a run with other data or settings.
    """
    position = Position(**json.loads((checkpoint / _POSITION_FILE).read_text()))
    if position.run_digest != run_digest:
        raise JobFailed(
            f"checkpoint {checkpoint.name} belongs to a run with other records or settings "
            f"({position.run_digest[:12]} is not {run_digest[:12]}): start a new run instead of resuming this one"
        )
    set_peft_model_state_dict(model, load_file(checkpoint / ADAPTER_FILE))
    state = torch.load(checkpoint / _STATE_FILE, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and state["random"]["cuda"]:
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return position


def _random_state() -> dict[str, object]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
