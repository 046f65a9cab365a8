"""TensorBoard files, read back with TensorBoard's own reader."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill_trainer.observing import StepSeen
from textmill_trainer.tensorboard import TensorBoardObserver
from textmill_trainer.workfolder import WorkFolder


class Loop:
    """Writes metrics and shows them to the observer, in the order of the real loop."""

    def __init__(self, root: Path, resume_from: Path | None = None) -> None:
        self.folder = WorkFolder(root)
        root.mkdir(exist_ok=True)
        self.folder.metrics.write_bytes(resume_from.read_bytes() if resume_from else b"")
        self.observer = TensorBoardObserver(self.folder)

    def step(self, number: int, loss: float) -> None:
        metric = StepMetrics(
            step=number, epoch=1, loss=loss, learning_rate=1e-3, gradient_norm=1, tokens=1, tokens_per_s=9, seconds=1
        )
        self._append(metric)
        self.observer.step(StepSeen(metric, 9, ()))

    def evaluate(self, number: int, **losses: float) -> None:
        metric = EvalMetrics(step=number, epoch=1, **losses)  # type: ignore[arg-type]
        self._append(metric)
        self.observer.evaluated(metric)

    def _append(self, metric: StepMetrics | EvalMetrics) -> None:
        with self.folder.metrics.open("ab") as file:
            file.write(metric.to_json() + b"\n")


def curve(folder: WorkFolder, tag: str) -> list[tuple[int, float]]:
    accumulator: Any = EventAccumulator(str(folder.tensorboard))  # type: ignore[no-untyped-call]
    accumulator.Reload()
    return [(e.step, round(e.value, 4)) for e in accumulator.Scalars(tag)]


def test_steps_and_evaluations_are_curves(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.evaluate(0, eval_loss=3.0)
    loop.step(1, 2.0)
    loop.step(2, 1.5)
    loop.evaluate(2, eval_loss=1.0, kl_to_base=0.25)
    loop.observer.close()
    assert curve(loop.folder, "loss/train") == [(1, 2.0), (2, 1.5)]
    assert curve(loop.folder, "loss/eval") == [(0, 3.0), (2, 1.0)]
    assert curve(loop.folder, "forgetting/kl_to_base") == [(2, 0.25)]
    assert curve(loop.folder, "speed/tokens_per_s") == [(1, 9.0), (2, 9.0)]


def test_a_resumed_run_has_each_step_once_and_all_of_them(tmp_path: Path) -> None:
    """It had come to step 3 when it was killed, and its checkpoint is of step 1; also in the very same folder."""
    first = Loop(tmp_path / "run")
    first.step(1, 3.0)
    checkpoint = tmp_path / "metrics.jsonl"
    checkpoint.write_bytes(first.folder.metrics.read_bytes())
    first.step(2, 2.0)
    first.step(3, 1.0)
    first.observer.close()
    for root in (tmp_path / "elsewhere", tmp_path / "run"):
        resumed = Loop(root, checkpoint)
        resumed.step(2, 2.0)
        resumed.step(3, 1.0)
        resumed.step(4, 0.5)
        resumed.observer.close()
        assert curve(resumed.folder, "loss/train") == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]


def test_a_run_without_a_step_closes(tmp_path: Path) -> None:
    TensorBoardObserver(WorkFolder(tmp_path)).close()
    assert not list(tmp_path.iterdir())
