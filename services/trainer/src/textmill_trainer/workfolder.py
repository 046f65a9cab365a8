"""What the worker and its training process share: one folder, and the meaning of each file in it. No torch.

The worker writes ``spec.json``, the records and perhaps a checkpoint, then starts the process; the process writes
progress and results. Files that are replaced are replaced by rename, so a reader always sees a whole one.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from textmill.contracts.anomalies import AnomalyCounts
from textmill.contracts.base import Contract
from textmill.contracts.jobs import Progress, TrainJob
from textmill.contracts.masking import MaskingSummary
from textmill.contracts.runs import MergeCheck, TrainingSummary, VerdictNote

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
"""The process was asked to stop; its newest checkpoint says how far it came."""


class TrainSpec(Contract):
    """What the process is to do. ``dequantized_budget_bytes`` bounds frozen weights held in bf16 instead of NF4.

    ``general_prompts`` is a file of prompts besides our own, to measure and to replay general abilities by.
    ``gpus`` is in how many processes to train; None for one on each GPU.
    """

    job: TrainJob
    base_model: str
    max_padded_tokens: int
    dequantized_budget_bytes: int
    general_prompts: str | None = None
    device_hour_price: float = 0.0
    gpus: int | None = None


class RawText(Contract):
    """A document, or the part of it that a split has, as text to learn word for word."""

    document_id: str
    text: str


class TrainResult(Contract):
    training: TrainingSummary
    merge: MergeCheck
    base_sha256: str
    masking: MaskingSummary | None = None
    anomalies: AnomalyCounts | None = None
    verdict: VerdictNote | None = None


class TrainError(Contract):
    """Why the process gave up. ``retryable`` is the error's class's own word."""

    message: str
    retryable: bool


@dataclass(frozen=True)
class WorkFolder:
    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    def records(self, split: str) -> Path:
        """Parquet of ``textmill.contracts.datasets.Record``."""
        return self.root / f"{split}.parquet"

    def lines(self, split: str) -> Path:
        """JSON lines of ``RawText`` or of ``textmill.contracts.preferences.PreferencePair``."""
        return self.root / f"{split}.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def record_losses(self) -> Path:
        """A JSON line a step: ``step``, ``epoch`` and ``records``, a list of record id, loss and tokens."""
        return self.root / "record_losses.jsonl"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def report(self, name: str) -> Path:
        """A contract of its own under this name: kept in the store with the attempt, and served by the API."""
        return self.reports / f"{name}.json"

    @property
    def tensorboard(self) -> Path:
        """Event files, for ``tensorboard --logdir``."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def progress(self) -> Path:
        """The last ``Progress``."""
        return self.root / "progress.json"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def exit_code(self) -> Path:
        """Of the main process, where there are several."""
        return self.root / "exit_code"

    @property
    def log(self) -> Path:
        """The process's standard output and error."""
        return self.root / "process.log"

    def write(self, path: Path, contract: Contract) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.{os.getpid()}")
        work.write_bytes(contract.to_json())
        work.rename(path)

    def read_progress(self) -> Progress | None:
        return Progress.model_validate_json(self.progress.read_bytes()) if self.progress.exists() else None

    def read_error(self) -> TrainError | None:
        return TrainError.model_validate_json(self.error.read_bytes()) if self.error.exists() else None
