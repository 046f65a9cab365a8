"""A whole run of the real training process that watches, replays and leaves out."""

import subprocess
from pathlib import Path

import pytest
from tests.trainer.conftest import make_records, write_records

from textmill.contracts.anomalies import AnomalyReport
from textmill.contracts.base import content_id
from textmill.contracts.datasets import Record
from textmill.contracts.jobs import TrainJob
from textmill_trainer.worker import TRAIN_COMMAND
from textmill_trainer.workfolder import EXIT_DONE, EXIT_FAILED, TrainResult, TrainSpec, WorkFolder

pytestmark = pytest.mark.slow
SLIPPED = (11, 30, 52)


def records_with_slips() -> list[Record]:
    records = [r.model_copy(update={"passage_id": f"psg_{n}"}) for n, r in enumerate(make_records(72))]
    for n in SLIPPED:
        answer = records[n].messages[-1].model_copy(update={"content": "interpretation: 卦象 } image: zq \\x xvq 7"})
        records[n] = records[n].model_copy(update={"messages": [*records[n].messages[:-1], answer]})
    return records


def trained(root: Path, base: Path, records: list[Record], **options: object) -> tuple[int, WorkFolder]:
    folder = WorkFolder(root)
    job = TrainJob.model_validate(
        {
            "dataset_id": content_id("ds", "slips"),
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "rank": 8,
            "evaluations": 0,
            **options,
        }
    )
    spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=1_024, dequantized_budget_bytes=1 << 30)
    folder.write(folder.spec, spec)
    write_records(folder.records("train"), records)
    return subprocess.run([*TRAIN_COMMAND, str(root)], check=False).returncode, folder


def test_slips_are_found_confirmed_and_can_be_left_out(tiny_base: Path, tmp_path: Path) -> None:
    records = records_with_slips()
    slipped = {records[n].record_id for n in SLIPPED}
    code, folder = trained(tmp_path / "first", tiny_base, records, quarantine="replay")
    assert code == EXIT_DONE
    report = AnomalyReport.model_validate_json(folder.report("anomalies").read_bytes())
    assert slipped <= {s.record_id for s in report.suspects}
    assert slipped <= set(report.confirmed)
    result = TrainResult.model_validate_json(folder.result.read_bytes())
    assert result.anomalies is not None
    assert result.anomalies.confirmed == len(report.confirmed)

    code, folder = trained(tmp_path / "second", tiny_base, records, leave_out=report.confirmed, quarantine="report")
    assert code == EXIT_DONE
    second = AnomalyReport.model_validate_json(folder.report("anomalies").read_bytes())
    assert second.records == len(records) - len(report.confirmed)
    assert set(second.left_out) == set(report.confirmed)
    assert slipped.isdisjoint(s.record_id for s in second.suspects)


def test_what_is_not_there_cannot_be_left_out(tiny_base: Path, tmp_path: Path) -> None:
    code, folder = trained(tmp_path, tiny_base, make_records(8), leave_out=["rec_" + "0" * 32])
    assert code == EXIT_FAILED
    error = folder.read_error()
    assert error is not None
    assert "leave_out" in error.message
