"""Stands in for the training process: does at once what FAKE_TRAIN says, by the same files and exit codes."""

import os
import signal
import sys
import time
from pathlib import Path

from textmill.contracts.jobs import Progress
from textmill.contracts.runs import MergeCheck, StepMetrics, TrainingSummary
from textmill_trainer.workfolder import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, TrainError, TrainResult, WorkFolder

folder = WorkFolder(Path(sys.argv[1]))


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number,
        epoch=1.0,
        loss=2.0,
        learning_rate=1e-3,
        gradient_norm=1.0,
        tokens=10,
        tokens_per_s=5.0,
        seconds=2.0,
    )


def checkpoint(number: int) -> None:
    path = folder.checkpoints / f"step-{number:08d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "state.pt").write_text(f"state {number}")


def finish() -> int:
    for made, name in ((folder.adapter, "adapter_model.safetensors"), (folder.merged, "model.safetensors")):
        made.mkdir()
        (made / name).write_bytes(b"weights")
    training = TrainingSummary(
        steps=2, epochs=1.0, first_loss=2.0, final_loss=1.0, eval_loss_before=None, eval_loss_after=None, tokens=20,
        tokens_per_s=5.0, seconds=4.0, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    merge = MergeCheck(mean_kl=1e-6, top1_agreement=1.0, tokens=10)
    folder.write(folder.result, TrainResult(training=training, merge=merge, base_sha256="0" * 64))
    return EXIT_DONE


def fail() -> int:
    folder.write(folder.error, TrainError(message="record rec_7 has no assistant turn", retryable=False))
    return EXIT_FAILED


def until_stopped() -> int:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    (folder.root / "ready").touch()
    while not stopped:
        time.sleep(0.01)
    checkpoint(5)
    return EXIT_INTERRUPTED


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return EXIT_FAILED


for number in (1, 2):
    with folder.metrics.open("ab") as file:
        file.write(step(number).to_json() + b"\n")
checkpoint(2)
folder.write(folder.report("fake"), Progress(stage="reported"))
folder.record_losses.write_text("{}\n")
sys.exit({"finish": finish, "fail": fail, "until_stopped": until_stopped, "die": die}[os.environ["FAKE_TRAIN"]]())
