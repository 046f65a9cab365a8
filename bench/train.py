"""How fast the trainer is beside TRL's SFTTrainer, what its watching costs, and whether its promises hold.

    python bench/train.py [--parts speed,watching,kills,gates] [--report REPORT.json]

Prints each figure beside its goal and writes ``bench/results/train.json``. Speed is real tokens a second, padding not
counted, on the same records, model, machine and in the same run: each reading in a process of its own, the two tools
by turns. TRL is set up in each of the ways that its documentation gives for speed, and its fastest is compared
(``train_peer.py``); beside the goal it is read once more in our environment, whose settings its documentation doesn't
know and which help it, too. A part whose figures nobody has made yet says so, and is no goal.
"""

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from findings import Findings
from train_data import long_records, short_records
from train_peer import Reading, Task, run_until_training

from textmill.contracts.datasets import Record
from textmill_synth.export import ParquetFile
from textmill_trainer.launcher import STEADY

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).with_name("train_peer.py")
_CASES = {"short": (short_records, 8, 12, 2.5), "long": (long_records, 2, 4, 1.2)}
"""Records, batch (short: the demo recipe's), steps of which the first is not counted, goal in times TRL's."""
_PACKED = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1}
WATCHED_STEPS, WATCHED_PAIRS = 4, 5
KL_GOAL, TOP1_GOAL, WATCHING_GOAL = 1e-4, 0.995, 0.03


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, by name")
    parser.add_argument("--pairs", type=int, default=3, help="readings of each tool that are compared")
    parser.add_argument("--report", type=Path, default=ROOT / "demo-report/report.json", help="of 'make demo'")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/train.json")
    options = parser.parse_args()
    findings, began = Findings(), time.monotonic()
    for name in options.parts.split(","):
        PARTS[name](findings, options)
    command = " ".join(["python", "bench/train.py", *sys.argv[1:]])
    findings.write(options.out, command, seconds=round(time.monotonic() - began))
    return 0 if findings.all_hold else 1


def speed(findings: Findings, options: argparse.Namespace) -> None:
    for name, (make, batch_size, steps, goal) in _CASES.items():
        with stored(make()) as records:
            best = fastest_way_of_trl(findings, name, records, batch_size)
            tasks = {
                "textmill": Task("textmill", str(records), batch_size, 2 * steps, 2),
                "trl": replace(best, steps=steps),
                "trl, threads as ours": replace(best, steps=steps, environment=dict(STEADY)),
            }
            rounds = [{tool: read(task) for tool, task in tasks.items()} for _ in range(options.pairs)]
        for tool in tasks:
            findings.note(f"{name} {tool}", **figures([readings[tool] for readings in rounds]))
        helped = times(rounds, "trl, threads as ours")
        findings.note(f"{name}, over TRL with its threads set as ours", times=round(helped, 2))
        found = times(rounds, "trl")
        findings.goal(f"tokens/s over TRL's, {name} records", f"{found:.2f} times", f">= {goal} times", found >= goal)


def times(rounds: list[dict[str, Reading]], other: str) -> float:
    """Our tokens a second over another's, the median of the rounds."""
    return statistics.median(r["textmill"].tokens_per_s / r[other].tokens_per_s for r in rounds)


def fastest_way_of_trl(findings: Findings, name: str, records: Path, batch_size: int) -> Task:
    """TRL's documentation asks for flash attention with packing and without padding; on a CPU both run on SDPA."""
    longest = {"short": 320, "long": 1_024}[name]
    ways: dict[str, dict[str, Any]] = {
        "padded": {},
        "group_by_length": {"train_sampling_strategy": "group_by_length"},
        "padding_free": {"padding_free": True, "max_length": None},
        "packing": {**_PACKED, "max_length": longest},
    }
    tasks = {way: Task("trl", str(records), batch_size, 3, 1, more) for way, more in ways.items()}
    readings = {way: read(task) for way, task in tasks.items()}
    findings.note(f"{name} trl, ways tried", **{way: f"{r.tokens_per_s:.0f} tok/s" for way, r in readings.items()})
    return tasks[max(readings, key=lambda way: readings[way].tokens_per_s)]


def read(task: Task) -> Reading:
    """One reading in a fresh process. Ours waits for its threads as the trainer's worker has it; TRL as torch does,
    unless its task says otherwise."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(task), file)
        file.flush()
        own = STEADY if task.tool == "textmill" else task.environment
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **own}
        done = subprocess.run(
            [sys.executable, str(PEER), file.name], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{task}: {done.stderr[-2_000:]}")
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


def figures(readings: list[Reading]) -> dict[str, Any]:
    return {
        "tokens_per_s": [round(r.tokens_per_s, 1) for r in readings],
        "tokens": readings[0].tokens,
        "losses": [round(loss, 3) for loss in readings[0].losses],
        "peak_mb": max(r.peak_mb for r in readings),
    }


def watching(findings: Findings, options: argparse.Namespace) -> None:
    """Short runs of one model in one process, by turns with all that watches and without; CPU time, so that other
    programs don't count. Without: no observer, and the chain of digests is a constant.
    """
    os.environ.update(STEADY)
    from textmill_trainer import loop, stages

    train, ratios = stages.train, list[float]()

    def by_turns(run: Any) -> None:
        observers = list(run.observers)
        for _ in range(WATCHED_PAIRS):
            run.observers = list(observers)
            shutil.rmtree(run.folder.tensorboard, ignore_errors=True)
            watched = _cpu_seconds(lambda: train(run))
            with _constant_digests(loop):
                ratios.append(watched / _cpu_seconds(lambda: _train_bare(run)))

    with stored(short_records()) as records:
        run_until_training(Task("textmill", str(records), 8, WATCHED_STEPS, 1), by_turns)
    share = statistics.median(ratios) - 1
    findings.note("watching", pairs=[round(ratio, 4) for ratio in ratios], steps_each=WATCHED_STEPS)
    findings.goal("what watching adds to a step", f"{share:.1%}", f"<= {WATCHING_GOAL:.0%}", share <= WATCHING_GOAL)


def _train_bare(run: Any) -> None:
    from textmill_trainer import loop

    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        loop.train(run.model, run.objective, run.learned, run.settings, Path(folder))


@contextmanager
def _constant_digests(loop: Any) -> Iterator[None]:
    kept = {name: getattr(loop, name) for name in ("step_digest", "weights_digest")}
    try:
        for name in kept:
            setattr(loop, name, lambda *_: "0" * 64)
        yield
    finally:
        for name, function in kept.items():
            setattr(loop, name, function)


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def kills(findings: Findings, options: argparse.Namespace) -> None:
    """Of ``bench/train_kills.py``: runs killed at random and resumed must end with the digest of one that wasn't."""
    try:
        measure = importlib.import_module("train_kills").measure_kills
    except ModuleNotFoundError:
        findings.note("kills", measured="no: bench/train_kills.py is not there")
        return
    measured = measure()
    findings.note("kills", kills=len(measured["kills"]), seconds=measured["seconds"])
    for goal in measured["goals"]:
        findings.goal(*goal)


def gates(findings: Findings, options: argparse.Namespace) -> None:
    """From the report of a demo that ran here before."""
    report = json.loads(options.report.read_text()) if options.report.exists() else {}
    if not {"training", "parity", "forecast"} <= report.keys():
        findings.note("gates", measured=f"no: {options.report} isn't a whole demo's report; run 'make demo' first")
        return
    merge, parity, forecast = report["training"]["merge"], report["parity"], report["forecast"]
    findings.note("gates", merge=merge, parity=parity, forecast=forecast)
    kl, top1 = merge["mean_kl"], parity["top1_agreement"]
    findings.goal("published model against the adapter, mean KL", f"{kl:.1e}", f"<= {KL_GOAL:.0e}", kl <= KL_GOAL)
    findings.goal("served model against it, top-1", f"{top1:.2%}", f">= {TOP1_GOAL:.1%}", top1 >= TOP1_GOAL)


PARTS: dict[str, Callable[[Findings, argparse.Namespace], None]] = {
    "speed": speed,
    "watching": watching,
    "kills": kills,
    "gates": gates,
}


@contextmanager
def stored(records: list[Record]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        path = Path(folder) / "train.parquet"
        with ParquetFile(path) as file:
            for record in records:
                file.write(record.to_json())
        yield path


if __name__ == "__main__":
    raise SystemExit(main())
