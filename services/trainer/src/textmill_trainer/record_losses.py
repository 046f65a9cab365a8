"""The loss of each record at each step, as JSON lines in one file: written by the loop, read by whoever asks later.

A line is ``{"step": 3, "epoch": 0.5, "records": [["rec_...", 1.25, 17], ...]}``: record, mean nats a token, tokens.
No torch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from textmill_trainer.observing import RecordLoss

RECORD_LOSSES_FILE = "record_losses.jsonl"


@dataclass(frozen=True)
class StepLosses:
    step: int
    epoch: float
    records: Sequence[RecordLoss]

    def to_json(self) -> bytes:
        records = [(r.record_id, r.loss, r.tokens) for r in self.records]
        return json.dumps({"step": self.step, "epoch": self.epoch, "records": records}).encode()


def read_record_losses(path: Path) -> Iterator[StepLosses]:
    """All whole lines; a last line without its end is still being written."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for line in whole.splitlines():
        fields = json.loads(line)
        yield StepLosses(fields["step"], fields["epoch"], [RecordLoss(*r) for r in fields["records"]])
