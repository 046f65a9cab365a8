"""A run as TensorBoard event files, where TensorBoard is installed.

A resumed run starts its files anew from the metrics it goes on with: steps that an attempt before it had done past its
last checkpoint are in neither, so the curves never run back on themselves. Knows no store.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.observing import StepSeen
from textmill_trainer.workfolder import WorkFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_EVERY_S = 10
_STEP_CURVES = {
    "loss/train": "loss",
    "optimizer/learning_rate": "learning_rate",
    "optimizer/gradient_norm": "gradient_norm",
    "speed/tokens_per_s": "tokens_per_s",
    "memory/bytes": "memory_bytes",
    "epoch": "epoch",
}
_EVAL_CURVES = {
    "loss/eval": "eval_loss",
    "loss/heldout": "heldout_loss",
    "loss/own_wordings": "probe_loss",
    "loss/train_sample": "train_loss",
    "forgetting/kl_to_base": "kl_to_base",
    "recall/exact": "exact_recall",
    "recall/reworded": "reworded_recall",
    "recall/prefix": "prefix_recall",
}


class TensorBoardObserver:
    """Writes ``folder.tensorboard``. The run's metrics file must have a line before its observers see it."""

    def __init__(self, folder: WorkFolder) -> None:
        self._metrics = folder.metrics
        self._target = folder.tensorboard
        self._writer: SummaryWriter | None = None

    def step(self, seen: StepSeen) -> None:
        self._add(seen.metrics)

    def evaluated(self, metrics: EvalMetrics) -> None:
        self._add(metrics)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, metric: StepMetrics | EvalMetrics) -> None:
        if self._writer is not None:
            _write(self._writer, metric)
            return
        self._writer = _started_anew(self._target)
        for known in parse_metrics(self._metrics.read_bytes()):
            _write(self._writer, known)


def tensorboard_is_installed() -> bool:
    return find_spec("tensorboard") is not None


def _started_anew(folder: Path) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder), flush_secs=FLUSH_EVERY_S)


def _write(writer: "SummaryWriter", metric: StepMetrics | EvalMetrics) -> None:
    curves = _STEP_CURVES if isinstance(metric, StepMetrics) else _EVAL_CURVES
    for tag, name in curves.items():
        value = getattr(metric, name)
        if value is not None:
            writer.add_scalar(tag, value, metric.step)
