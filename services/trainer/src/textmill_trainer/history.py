"""What a run has written so far, in its folder: metrics, record losses, and which evaluation was the best. No torch.

A resumed run goes on from the copies in its checkpoint: lines of steps that were not kept are gone.
"""

import shutil
from pathlib import Path

from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.record_losses import RECORD_LOSSES_FILE, StepLosses

METRICS_FILE = "metrics.jsonl"
BEST_FILE = "best.safetensors"
"""The weights of the best evaluation, while a later one was worse."""
REPLAY_FILE = "replay.json"
"""General examples that were made for this run before it began: checkpoints carry them, nothing here reads them."""


class History:
    def __init__(self, folder: Path, checkpoint: Path | None = None) -> None:
        self.metrics_file, self._losses_file, self.best_file = written = tuple(
            folder / name for name in (METRICS_FILE, RECORD_LOSSES_FILE, BEST_FILE)
        )
        self.files = (*written, folder / REPLAY_FILE)
        folder.mkdir(parents=True, exist_ok=True)
        for path in written:
            path.unlink(missing_ok=True)
            if checkpoint and (checkpoint / path.name).exists():
                shutil.copyfile(checkpoint / path.name, path)
        data = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        metrics = list(parse_metrics(data))
        steps = [m for m in metrics if isinstance(m, StepMetrics)]
        self.evals = [m for m in metrics if isinstance(m, EvalMetrics)]
        self.digest = steps[-1].digest if steps else ""

    def stepped(self, metrics: StepMetrics, losses: StepLosses) -> None:
        _append(self.metrics_file, metrics.to_json())
        _append(self._losses_file, losses.to_json())
        self.digest = metrics.digest

    def evaluated(self, metrics: EvalMetrics) -> None:
        _append(self.metrics_file, metrics.to_json())
        self.evals.append(metrics)

    @property
    def best(self) -> EvalMetrics | None:
        """The first of the lowest score after training began: the base itself is no candidate."""
        return min((m for m in self.evals if m.step > 0), key=lambda m: m.score, default=None)

    @property
    def evals_since_best(self) -> int:
        return sum(m.step > self.best.step for m in self.evals) if self.best else 0


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")
