"""Plants the owner's format slips into the demo's data, trains the real small model, and counts what the watch finds.

    python bench/losswatch.py [--cases wordings-41 wordings-clean ...]

Three kinds of data, none written by an LLM: facts asked in many wordings of which single rows slipped; facts asked
once, in English and Chinese; and facts whose answer slipped before it was copied to its wordings, as happened to the
owner. 5 % of the answers are slips, each kind in turn. A found record is one in the run's report "anomalies"; a false
alarm is a good record there. ``clean`` cases have no slip, and must have no suspect. Runs of the same recipe as the
demo (3 epochs, batch 8, rank 16, learning rate 2e-3), with the replay, which then says confirmed or cleared. What the
report calls surprising, a high loss in the common form, is no alarm, and is counted by itself.
Writes ``bench/results/losswatch.json`` after each case. About five minutes a case on two quiet cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from findings import Findings
from losswatch_data import Planted, make_records, plant

from textmill.contracts.anomalies import AnomalyReport
from textmill.contracts.base import content_id
from textmill.contracts.datasets import Record
from textmill.contracts.jobs import TrainJob
from textmill_synth.export import ParquetFile
from textmill_trainer.base_model import default_folder, ensure_base_model
from textmill_trainer.workfolder import TrainSpec, WorkFolder

ROOT = Path(__file__).resolve().parent.parent
SHARE = 0.05
FOUND_GOAL = 0.9
FALSE_GOAL = 0.05
BATCH = 8


@dataclass(frozen=True)
class Found:
    """``found`` and ``false`` are of the run's own losses; ``confirmed`` and ``cleared`` are what the replay said."""

    case: str
    records: int
    planted: int
    found: int
    false: int
    confirmed_slips: int
    confirmed_good: int
    cleared_slips: int
    cleared_good: int
    surprising_slips: int
    surprising_good: int
    spikes: int
    missed_by_kind: dict[str, int]
    planted_by_kind: dict[str, int]
    seconds: float


def wordings() -> list[Record]:
    return make_records("en", 12, 16)


def once() -> list[Record]:
    return make_records("en", 64, 1) + make_records("zh", 64, 1)


def copied() -> list[Record]:
    return make_records("en", 48, 4)


def cases() -> dict[str, Callable[[], Planted]]:
    """Seeds that nothing was tuned on."""
    return {
        "wordings-41": lambda: plant(wordings(), SHARE, "row", 41),
        "wordings-42": lambda: plant(wordings(), SHARE, "row", 42),
        "wordings-clean": lambda: Planted(wordings(), {}),
        "once-41": lambda: plant(once(), SHARE, "row", 41),
        "once-42": lambda: plant(once(), SHARE, "row", 42),
        "once-clean": lambda: Planted(once(), {}),
        "copied-41": lambda: plant(copied(), SHARE, "fact", 41),
        "copied-42": lambda: plant(copied(), SHARE, "fact", 42),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(cases()), default=list(cases()))
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/losswatch.json")
    options = parser.parse_args()
    base = ensure_base_model(default_folder())
    findings, readings = Findings(), []
    for name in options.cases:
        readings.append(measure(name, cases()[name](), base))
        findings.note(name, **asdict(readings[-1]))
    judge(readings, findings)
    findings.write(options.out, " ".join(["python", "bench/losswatch.py", *sys.argv[1:]]))
    return 0 if findings.all_hold else 1


def measure(name: str, planted: Planted, base: Path) -> Found:
    began = time.monotonic()
    found = train(name, planted.records, base)
    verdicts = {s.record_id: s.verdict for s in found.suspects}
    right = [i for i in verdicts if i in planted.slips]
    wrong = [i for i in verdicts if i not in planted.slips]
    missed = Counter(kind for record_id, kind in planted.slips.items() if record_id not in verdicts)
    return Found(
        case=name,
        records=len(planted.records),
        planted=len(planted.slips),
        found=len(right),
        false=len(wrong),
        confirmed_slips=sum(verdicts[i] == "confirmed" for i in right),
        confirmed_good=sum(verdicts[i] == "confirmed" for i in wrong),
        cleared_slips=sum(verdicts[i] == "cleared" for i in right),
        cleared_good=sum(verdicts[i] == "cleared" for i in wrong),
        surprising_slips=sum(s.record_id in planted.slips for s in found.surprising),
        surprising_good=sum(s.record_id not in planted.slips for s in found.surprising),
        spikes=len(found.spikes),
        missed_by_kind=dict(missed),
        planted_by_kind=dict(Counter(planted.slips.values())),
        seconds=round(time.monotonic() - began, 1),
    )


def train(name: str, records: Sequence[Record], base: Path) -> AnomalyReport:
    """A whole run in the trainer's own process."""
    with tempfile.TemporaryDirectory(prefix="textmill-losswatch-") as path:
        folder = WorkFolder(Path(path))
        with ParquetFile(folder.records("train")) as file:
            for record in records:
                file.write(record.to_json())
        job = TrainJob(
            dataset_id=content_id("ds", name),
            epochs=3,
            batch_size=BATCH,
            learning_rate=2e-3,
            evaluations=0,
            checkpoints=0,
            quarantine="replay",
        )
        spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=8_192, dequantized_budget_bytes=2 << 30)
        folder.write(folder.spec, spec)
        with folder.log.open("wb") as log:
            command = [sys.executable, "-m", "textmill_trainer.train", str(folder.root)]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            error = folder.read_error()
            raise SystemExit(f"{name} ended with {code}: {error.message if error else folder.log.read_text()[-2_000:]}")
        return AnomalyReport.model_validate_json(folder.report("anomalies").read_bytes())


def judge(readings: Sequence[Found], findings: Findings) -> None:
    for kind in ("wordings", "once", "copied"):
        planted = [r for r in readings if r.case.startswith(kind) and r.planted]
        if planted:
            found = sum(r.found for r in planted) / sum(r.planted for r in planted)
            false = sum(r.false for r in planted) / sum(r.records - r.planted for r in planted)
            findings.goal(f"{kind}: planted records found", f"{found:.1%}", f">= {FOUND_GOAL:.0%}", found >= FOUND_GOAL)
            findings.goal(f"{kind}: false alarms", f"{false:.1%}", f"< {FALSE_GOAL:.0%}", false < FALSE_GOAL)
        for reading in (r for r in readings if r.case == f"{kind}-clean"):
            findings.goal(f"{kind}, clean: alarms", str(reading.false), "0", reading.false == 0)


if __name__ == "__main__":
    sys.exit(main())
