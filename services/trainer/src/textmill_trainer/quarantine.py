"""Suspects go to quarantine: what is left out of a replay beside them, and what their losses there say.

A record's loss in the run that trained on it proves little, since the run learns slips too. So a short replay trains
on neither the suspects nor as many good records chosen to be like them (cross-fitting): a suspect whose loss there is
within what the good ones have is cleared, one above it is confirmed. Knows no torch; ``replay`` trains.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from textmill.contracts.anomalies import AnomalyCounts, AnomalyReport, ReplayedLoss, Suspect
from textmill.errors import JobFailed
from textmill_trainer.losswatch import Origin
from textmill_trainer.peers import spread

MOST_LEFT_OUT = 0.3
"""Of all records. A replay on less than the rest would say more of what is missing than of the suspects."""
LEAST_CONTROLS = 12
LEAST_OF_A_QUESTION = 8
"""Controls of each question that a suspect asks: what a fact costs that was never seen differs most by question."""
CONFIRMED_ABOVE = 3.0
"""Robust standard deviations of the controls above those of the same question."""


@dataclass(frozen=True)
class ReplayPlan:
    """Record ids that the replay doesn't train on, and what they ask."""

    suspects: Sequence[str]
    controls: Sequence[str]
    questions: Mapping[str, str] = field(default_factory=dict)

    @property
    def left_out(self) -> frozenset[str]:
        return frozenset((*self.suspects, *self.controls))


def keep_all_but(records_file: Path, record_ids: Sequence[str]) -> None:
    """Rewrite a Parquet file of records without those. The first time, the whole file is kept beside it.

    Raises:
        JobFailed: an id that isn't there, so that a slip of the pen doesn't pass as a cleaned dataset; or none is left.
    """
    whole = records_file.with_suffix(".whole.parquet")
    if not whole.exists():
        records_file.rename(whole)
    table = pq.read_table(whole)
    unwanted = set(record_ids)
    if missing := unwanted.difference(table["record_id"].to_pylist()):
        raise JobFailed(
            f"leave_out names records that aren't in the training split: {', '.join(sorted(missing)[:5])} "
            f"({len(missing)} in all); take the ids from the report 'anomalies' of a run on this dataset"
        )
    kept = table.filter([record_id not in unwanted for record_id in table["record_id"].to_pylist()])
    if not kept.num_rows:
        raise JobFailed(f"leave_out names all {table.num_rows} records: there is nothing left to train on")
    work = records_file.with_suffix(".work")
    pq.write_table(kept, work)
    work.rename(records_file)


def plan_replay(suspects: Sequence[Suspect], origins: Mapping[str, Origin], seed: int) -> ReplayPlan:
    """Which good records are left out beside the suspects: as many of one fact as there are suspects of one.

    So a suspect whose fact is taught by its other wordings is compared with such records, and one whose fact the
    replay never sees with facts that it never sees. The worst suspects come first where not all fit.
    """
    room = int(MOST_LEFT_OUT * len(origins))
    chosen = [s.record_id for s in suspects][: room // 2]
    sizes = Counter(_fact(origins[record_id]) for record_id in chosen)
    good = _good_facts({s.record_id for s in suspects}, origins)
    random.Random(seed).shuffle(good)
    asked = Counter(origins[record_id].question for record_id in chosen)
    least = max(LEAST_OF_A_QUESTION, math.ceil(LEAST_CONTROLS / max(1, len(asked))))
    wanted = {question: max(least, count) for question, count in asked.items()}
    controls: list[str] = []
    for (_, question), size in cycle(sorted(sizes.items())):
        if len(controls) >= room - len(chosen) or not good or max(wanted.values()) <= 0:
            break
        if wanted[question] > 0:
            fact = next((fact for fact in good if origins[fact[0]].question == question), good[0])
            good.remove(fact)
            controls += fact[:size]
            wanted[question] -= len(fact[:size])
    controls = controls[: room - len(chosen)]
    return ReplayPlan(chosen, controls, {i: origins[i].question for i in (*chosen, *controls)})


def _fact(origin: Origin) -> tuple[str, str]:
    """What a record teaches: the answer to one question about one passage, in whatever wording it is asked."""
    return origin.passage_id, origin.question


def _good_facts(suspected: AbstractSet[str], origins: Mapping[str, Origin]) -> list[list[str]]:
    """The records of each fact without a suspect; where there are too few such facts, single good records."""
    facts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record_id in sorted(origins):
        facts[_fact(origins[record_id])].append(record_id)
    good = [ids for ids in facts.values() if suspected.isdisjoint(ids)]
    if sum(map(len, good)) >= LEAST_CONTROLS:
        return good
    return [[record_id] for record_id in sorted(origins) if record_id not in suspected]


def judge(report: AnomalyReport, plan: ReplayPlan, losses: Mapping[str, float]) -> AnomalyReport:
    """The report with each suspect of the plan confirmed or cleared. ``losses`` are the replay's, by record id."""
    if len(plan.controls) < LEAST_CONTROLS:
        note = f"no replay: it needs {LEAST_CONTROLS} good records to leave out as well, and found {len(plan.controls)}"
        return report.model_copy(update={"note": note})
    roots = {record_id: math.sqrt(losses[record_id]) for record_id in plan.left_out}
    levels = {record_id: _level(record_id, roots, plan) for record_id in plan.left_out}
    reach = CONFIRMED_ABOVE * spread(np.array([roots[i] - levels[i] for i in plan.controls]))

    def judged(suspect: Suspect) -> Suspect:
        if suspect.record_id not in plan.suspects:
            return suspect
        level = levels[suspect.record_id]
        above = roots[suspect.record_id] > level + reach
        loss, limit = losses[suspect.record_id], (level + reach) ** 2
        replayed = ReplayedLoss(loss=loss, expected=level**2, limit=limit)
        return suspect.model_copy(update={"verdict": "confirmed" if above else "cleared", "replayed": replayed})

    return report.model_copy(update={"suspects": [judged(s) for s in report.suspects], "replayed": True})


def _level(record_id: str, roots: Mapping[str, float], plan: ReplayPlan) -> float:
    """The median of the other controls that ask the same; of all others where those are few."""
    others = [i for i in plan.controls if i != record_id]
    same = [i for i in others if plan.questions.get(i) == plan.questions.get(record_id)]
    return float(np.median([roots[i] for i in (same if len(same) >= LEAST_OF_A_QUESTION - 1 else others)]))


def count(report: AnomalyReport) -> AnomalyCounts:
    verdicts = [s.verdict for s in report.suspects]
    return AnomalyCounts(
        judged=report.judged,
        spikes=len(report.spikes),
        suspected=verdicts.count("suspected"),
        confirmed=verdicts.count("confirmed"),
        cleared=verdicts.count("cleared"),
        left_out=len(report.left_out),
    )
