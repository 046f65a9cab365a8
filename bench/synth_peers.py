"""Runs the peers of bench/synth.py: each in a process of its own environment, with a time cap, on the worker's core."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import synth_world as world
from cores import on

BENCH = Path(__file__).resolve().parent
NAMES = ("bespokelabs-curator", "distilabel", "synthetic-data-kit")
PROMPT = f"Text: {{passage}}\n\nQuestion: {world.QUESTION}\n\nAnswer in one short, full sentence."


@dataclass(frozen=True)
class Task:
    """``cap_s`` ends a peer that isn't done; ``max_tries`` and ``deadline_s`` are for those that have the setting."""

    passages: Sequence[str]
    concurrency: int
    deadline_s: float
    max_tries: int
    cap_s: float


@dataclass(frozen=True)
class Reading:
    """``rows_out`` is what the peer gave out. Of one that was cut off: what was answered to it, its most."""

    peer: str
    rows_in: int
    rows_out: int
    calls: int
    seconds: float
    cut_off: bool
    longest_open_s: float
    error: str

    @property
    def goodput(self) -> float:
        return self.rows_out / self.seconds

    def figures(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "peer"} | {
            "goodput": round(self.goodput, 2)
        }


def run(name: str, task: Task, server: dict[str, float]) -> Reading:
    python = _environment(name)
    with world.fault_llm(**server) as llm:
        body = {
            "url": llm.url,
            "passages": task.passages,
            "prompts": [PROMPT.format(passage=p, subject=p.split()[0]) for p in task.passages],
            "concurrency": task.concurrency,
            "deadline_s": task.deadline_s,
            "max_tries": task.max_tries,
        }
        told, cut_off, error = _run_capped(python, name, json.dumps(body), task.cap_s)
        stats = llm.stats()
    return Reading(
        peer=name,
        rows_in=len(task.passages),
        rows_out=told["rows_out"] if told else len(stats["answered"]),
        calls=stats["requests"],
        seconds=round(told["seconds"] if told else task.cap_s if cut_off else stats["busy_s"] or task.cap_s, 2),
        cut_off=cut_off,
        longest_open_s=stats["longest_open_s"],
        error=error,
    )


def _run_capped(python: Path, name: str, task: str, cap_s: float) -> tuple[dict[str, Any] | None, bool, str]:
    """What it printed last, whether it was cut off, and the end of what it said if it failed.

    ``-P``: else a runner would be found in place of the library that has its name.
    """
    with on(world.WORKER_CORES):
        process = subprocess.Popen(
            [str(python), "-P", str(BENCH / "peers" / f"{name}.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        out, errors = process.communicate(task, timeout=cap_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, True, ""
    lines = out.strip().splitlines()
    if process.returncode != 0 or not lines:
        return None, False, errors[-600:]
    return json.loads(lines[-1]), False, ""


def _environment(name: str) -> Path:
    """The Python of the peer's environment, which is made when there is none."""
    folder = BENCH / ".peers" / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "-r", str(BENCH / "peers" / f"{name}.txt")], check=True)
        ready.touch()
        print(f"installed {name} in {time.perf_counter() - began:.0f} s", flush=True)
    return python
