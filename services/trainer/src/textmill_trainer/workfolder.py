"""What the worker and its training process share: one folder, and the meaning of each file in it. No torch.

The worker writes ``spec.json``, the records and perhaps a checkpoint, then starts the process; the process writes
progress and results. Files that are replaced are replaced by rename, so a reader always sees a whole one.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from textmill.contracts.base import Contract
from textmill.contracts.jobs import Progress, TrainJob
from textmill.contracts.runs import MergeCheck, TrainingSummary

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
"""The process was asked to stop; its newest checkpoint says how far it came."""


class TrainSpec(Contract):
    """What the process is to do. ``dequantized_budget_bytes`` bounds frozen weights held in bf16 instead of NF4."""

    job: TrainJob
    base_model: str
    max_padded_tokens: int
    dequantized_budget_bytes: int


class TrainResult(Contract):
    training: TrainingSummary
    merge: MergeCheck
    base_sha256: str


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

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

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
    def log(self) -> Path:
        """The process's standard output and error."""
        return self.root / "process.log"

    def write(self, path: Path, contract: Contract) -> None:
        work = path.with_name(f".{path.name}.{os.getpid()}")
        work.write_bytes(contract.to_json())
        work.rename(path)

    def read_progress(self) -> Progress | None:
        return Progress.model_validate_json(self.progress.read_bytes()) if self.progress.exists() else None

    def read_error(self) -> TrainError | None:
        return TrainError.model_validate_json(self.error.read_bytes()) if self.error.exists() else None
