"""Judges the planted defects and the good answers of ``tests/synth/defects`` with all of synth's code checks.

    python bench/checks.py

Prints a table per kind of defect and per part of the set, and the time that the checks take; writes
``bench/results/checks.json``. "Right" is a defect rejected for a reason that fits it, or a good answer accepted. All
parts of the set have been used to better the checks by now; ``docs/synth.md`` has the shares at first sight, which tell
more of answers to come. The time is CPU time a record, the best of 20 rounds over all answers; a passage is read once
for all its answers, as in a job, and no answer was seen before.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/synth/defects"))

from planted import LANGUAGES, Planted, candidate, defects, good, instructions, judge, rightly_judged  # noqa: E402

from textmill.contracts.documents import Language  # noqa: E402
from textmill_synth.checks import Candidate, first_finding  # noqa: E402
from textmill_synth.evidence import locate_evidence  # noqa: E402
from textmill_synth.grounding import ALL_CHECKS  # noqa: E402

DEFECTS_GOAL = 0.98
GOOD_GOAL = 0.03
MICROSECONDS_GOAL = 300
PASSAGE_CHARACTERS = 600
ROUNDS = 20


@dataclass(frozen=True)
class Reading:
    kind: str
    part: str
    language: str
    evidence_named: bool
    records: int
    right: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/checks.json")
    options = parser.parse_args()
    readings = measure(named=True) + measure(named=False)
    named = [r for r in readings if r.evidence_named]
    rejected = share(r for r in named if r.kind != "good")
    lost = 1 - share(r for r in named if r.kind == "good")
    microseconds = {language: round(cost(language), 1) for language in LANGUAGES}
    goals = [
        (
            "defects rejected for the right reason",
            f"{rejected:.1%}",
            f">= {DEFECTS_GOAL:.0%}",
            rejected >= DEFECTS_GOAL,
        ),
        ("good answers rejected", f"{lost:.1%}", f"<= {GOOD_GOAL:.0%}", lost <= GOOD_GOAL),
    ]
    goals += [
        (
            f"{language}: a record, its passage read",
            f"{us:.0f} us",
            f"< {MICROSECONDS_GOAL} us",
            us < MICROSECONDS_GOAL,
        )
        for language, us in microseconds.items()
    ]
    report(options.out, readings, microseconds, goals)
    return 0 if all(held for *_, held in goals) else 1


def measure(named: bool) -> list[Reading]:
    """Judge every record, with its evidence named or not."""
    records, right = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for language in LANGUAGES:
        prompt = instructions(language)
        for record in (*good(language), *defects(language)):
            if not named and record.kind == "evidence":
                continue
            shown = record if named else replace(record, evidence=None)
            key = record.kind, record.part, language
            records[key] += 1
            right[key] += rightly_judged(record, judge(shown, prompt))
    return [Reading(*key, evidence_named=named, records=n, right=right[key]) for key, n in sorted(records.items())]


def share(readings: Iterable[Reading]) -> float:
    counted = list(readings)
    return sum(r.right for r in counted) / sum(r.records for r in counted)


def cost(language: Language) -> float:
    """Microseconds of CPU time a record."""
    prompt = instructions(language)
    records = [long_enough(r, language) for r in good(language)]
    rounds = []
    for turn in range(ROUNDS):
        candidates = [unseen(candidate(r, prompt, span(r)), turn) for r in records]
        for one in {c.passage: c for c in candidates}.values():
            first_finding(replace(one, answer="Warm."), ALL_CHECKS)
        began = time.process_time()
        for one in candidates:
            first_finding(one, ALL_CHECKS)
        rounds.append((time.process_time() - began) / len(candidates))
    return min(rounds) * 1e6


def long_enough(record: Planted, language: Language) -> Planted:
    """The record with its passage filled up to ``PASSAGE_CHARACTERS`` with others of its language."""
    others = dict.fromkeys(r.passage for r in good(language))
    text = record.passage
    for other in others:
        if len(text) >= PASSAGE_CHARACTERS:
            break
        text += f"\n\n{other}" if other not in text else ""
    return replace(record, passage=text)


def unseen(one: Candidate, turn: int) -> Candidate:
    """The answer with three blanks behind it, other ones each round, so that nothing remembers it."""
    blanks = "".join(" \n\t"[turn // 3**place % 3] for place in range(3))
    return replace(one, answer=one.answer + blanks)


def span(record: Planted) -> tuple[int, int] | None:
    return locate_evidence(record.evidence, record.passage) if record.evidence else None


def report(
    out: Path, readings: list[Reading], microseconds: dict[str, float], goals: list[tuple[str, str, str, bool]]
) -> None:
    named = [r for r in readings if r.evidence_named]
    for kind in sorted({r.kind for r in named}):
        figures = [r for r in named if r.kind == kind]
        cells = (f"{lang} {count([r for r in figures if r.language == lang])}" for lang in LANGUAGES)
        print(f"{kind:<18} {'   '.join(cells)}")
    for title, chosen in (("evidence named", named), ("no evidence", [r for r in readings if not r.evidence_named])):
        for part in sorted({r.part for r in chosen}):
            of_part = [r for r in chosen if r.part == part]
            bad, fine = [r for r in of_part if r.kind != "good"], [r for r in of_part if r.kind == "good"]
            print(
                f"{title:<16} {part:<10} defects {count(bad)} {share(bad):.1%}   good {count(fine)} {share(fine):.1%}"
            )
    for name, figure, goal, held in goals:
        print(f"{name:<42} {figure:>10}   goal {goal:<10} {'holds' if held else 'MISSED'}")
    document = {
        "command": " ".join(["python", "bench/checks.py", *sys.argv[1:]]),
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "goal_defects": DEFECTS_GOAL,
        "goal_good_rejected": GOOD_GOAL,
        "goal_microseconds": MICROSECONDS_GOAL,
        "microseconds": microseconds,
        "readings": [asdict(reading) for reading in readings],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{sum(held for *_, held in goals)} of {len(goals)} goals hold")


def count(readings: list[Reading]) -> str:
    return f"{sum(r.right for r in readings):>3}/{sum(r.records for r in readings):<3}"


if __name__ == "__main__":
    sys.exit(main())
