"""Kills the real training process twenty times in one run, and compares the run with one that was left alone.

    python bench/train_kills.py [--kills 20]

Half of the kills are inside the writing of a checkpoint, half at random moments of a step. The model is a tiny one with
random weights, and dropout is on, so that the random state counts. Prints each goal and writes
``bench/results/train_kills.json``.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from findings import Findings  # noqa: E402
from tests.trainer.conftest import make_tiny_base  # noqa: E402
from tests.trainer.kills import prepare_run, run_and_kill, run_to_end  # noqa: E402

from textmill_trainer.base_model import default_folder, ensure_base_model  # noqa: E402

KILLS = 20
STEPS_A_KILL = 6
SEED = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/train_kills.json")
    options = parser.parse_args()
    measured = measure_kills(options.kills)
    findings = Findings()
    for goal in measured.pop("goals"):
        findings.goal(*goal)
    findings.write(options.out, " ".join(["python", "bench/train_kills.py", *sys.argv[1:]]), **measured)
    return 0 if findings.all_hold else 1


def measure_kills(kills: int = KILLS) -> dict[str, Any]:
    """Every kill, what is the same afterwards, and the goals: name, figure, goal, whether it holds."""
    began, rng, steps = time.monotonic(), random.Random(SEED), kills * STEPS_A_KILL
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as name:
        root = Path(name)
        base = make_tiny_base(ensure_base_model(default_folder()), root / "tiny-llama")
        straight = run_to_end(prepare_run(root / "straight", base, steps))
        folder = prepare_run(root / "cut", base, steps)
        hits = [run_and_kill(folder, rng, inside_save=n % 2 == 1) for n in range(kills)]
        resumed = run_to_end(folder)
    same = sum(a == b for a, b in zip(straight.digests, resumed.digests, strict=True))
    inside = sum(hit.inside_save for hit in hits)
    bits = straight.weights == resumed.weights and straight.adapter == resumed.adapter
    return {
        "goals": [
            (
                f"kill -9, {kills} times: steps with the same digest",
                f"{same}/{steps}",
                f"{steps}/{steps}",
                same == steps,
            ),
            ("adapter and last checkpoint, bit for bit", "same" if bits else "different", "same", bits),
            ("kills inside the writing of a checkpoint", str(inside), ">= 1", inside >= 1),
        ],
        "kills": [asdict(hit) for hit in hits],
        "last_digest": resumed.digests[-1],
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
