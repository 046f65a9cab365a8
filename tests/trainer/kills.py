"""Kills the real training process, at random moments and inside the writing of a checkpoint, and lets it go on."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.trainer.conftest import make_records, write_records

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import StepMetrics
from textmill_trainer.checkpoint import WEIGHTS_FILE, checkpoints
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.worker import TRAIN_COMMAND
from textmill_trainer.workfolder import EXIT_DONE, TrainSpec, WorkFolder

DEADLINE_S = 300.0
_LOOK_EVERY_S = 0.0005
_FILES = 3
_HELD = "held"
_HELD_IN_SAVE = f"""
import pathlib, runpy, sys, time
from textmill_trainer import checkpoint
left = int(sys.argv.pop())
def sync(path, really=checkpoint._sync):
    global left
    if path.parent.name.startswith(".step-"):
        left -= 1
        if left < 0:
            pathlib.Path(sys.argv[1], {_HELD!r}).touch()
            time.sleep(600)
    really(path)
checkpoint._sync = sync
runpy.run_module("textmill_trainer.train", run_name="__main__", alter_sys=True)
"""
"""The training process, held inside of a checkpoint, before the file that its last argument counts to is on the disk:
so that a kill can't come too late."""


@dataclass(frozen=True)
class End:
    """What a run came to: the digest of each step, and the bits of its weights."""

    digests: tuple[str, ...]
    weights: bytes
    adapter: bytes


@dataclass(frozen=True)
class Kill:
    """Where a kill hit. ``inside_save``: a checkpoint was half written. ``step`` is how far the run had come."""

    inside_save: bool
    step: int
    checkpoint_step: int


def prepare_run(root: Path, base: Path, steps: int) -> WorkFolder:
    """A run with dropout, so that the random state counts, and a checkpoint every third step."""
    folder = WorkFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    job = TrainJob(
        dataset_id="ds_" + "2" * 32, epochs=-(-steps // 4), max_steps=steps, batch_size=2, learning_rate=1e-2, rank=4,
        alpha=8, dropout=0.1, evaluations=0, checkpoints=steps // 3, quarantine="off",
    )  # fmt: skip
    spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=512, dequantized_budget_bytes=1 << 30)
    folder.write(folder.spec, spec)
    write_records(folder.records("train"), make_records(8))
    return folder


def run_to_end(folder: WorkFolder) -> End:
    with folder.log.open("wb") as log:
        done = subprocess.run([*TRAIN_COMMAND, str(folder.root)], stdout=log, stderr=log, check=False)
    if done.returncode != EXIT_DONE:
        raise RuntimeError(f"exit code {done.returncode}: {folder.read_error()} {folder.log.read_text()[-2000:]}")
    steps = [m for m in parse_metrics(folder.metrics.read_bytes()) if isinstance(m, StepMetrics)]
    return End(
        tuple(m.digest for m in steps),
        (checkpoints(folder.checkpoints)[-1] / WEIGHTS_FILE).read_bytes(),
        (folder.adapter / "adapter_model.safetensors").read_bytes(),
    )


def run_and_kill(folder: WorkFolder, rng: random.Random, inside_save: bool) -> Kill:
    """Start or resume it, and kill it a few steps later; or in the midst of the next checkpoint."""
    folder.metrics.unlink(missing_ok=True)
    came_from = _newest(folder)
    held = folder.root / _HELD
    held.unlink(missing_ok=True)
    steps = rng.randint(1, 5)
    delay_s = rng.uniform(0, 0.01)

    def due() -> bool:
        return held.exists() if inside_save else _step(folder) >= came_from + steps

    command = [*TRAIN_COMMAND, str(folder.root)]
    if inside_save:
        command = [sys.executable, "-c", _HELD_IN_SAVE, str(folder.root), str(rng.randrange(_FILES))]
    with folder.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(due, process)
            if not inside_save:
                time.sleep(delay_s)
        finally:
            process.kill()
            process.wait()
    return Kill(held.exists(), _step(folder), _newest(folder))


def _wait(due: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + DEADLINE_S
    while not due():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run ended before it could be killed (exit code {process.returncode})")
        time.sleep(_LOOK_EVERY_S)


def _newest(folder: WorkFolder) -> int:
    found = checkpoints(folder.checkpoints)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def _step(folder: WorkFolder) -> int:
    data = folder.metrics.read_bytes() if folder.metrics.exists() else b""
    steps = [m.step for m in parse_metrics(data) if isinstance(m, StepMetrics)]
    return steps[-1] if steps else 0
