"""Watches the loss of each record while a run goes on: which steps spiked, which records stand out, and their sources.

The report is rewritten as passes end, so that slips show while the run can still be stopped. Honest about
its sight: nothing is judged before a whole pass, nor among fewer than ``LEAST_RECORDS``. Knows no torch.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from textmill.contracts.anomalies import AnomalyReport, LossSpike, RecordSeen, Suspect
from textmill.contracts.runs import EvalMetrics
from textmill_trainer.form import oddities
from textmill_trainer.observing import StepSeen
from textmill_trainer.peers import Sighting, Standing, spread, standings
from textmill_trainer.record_losses import read_record_losses
from textmill_trainer.workfolder import WorkFolder

LEAST_RECORDS = 48
THRESHOLD = 5.0
"""Robust standard deviations, by loss alone. In real runs good records of a common kind came to 4.6 at most, those of a
rare one ("All six lines are broken.") to 7.8, and slips to 3.1 at least: no single threshold tells them apart."""
ODD_THRESHOLD = 2.5
"""For a record whose answer has a rare form, too (see ``form``)."""
LEAST_SPIKE = 0.2
"""Nats a token above what was expected. Late in a run, when peers have 0.002, a step of 0.05 stands out and is none."""
PREVIEW_CHARACTERS = 200
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Origin:
    """Where a record comes from, and what it asks: records of one question have answers of one form."""

    passage_id: str
    document_id: str
    question: str
    answer: str


def read_origins(path: Path) -> dict[str, Origin]:
    """By record id, from a Parquet file of records; empty if there is none (raw text, preferences)."""
    if not path.exists():
        return {}
    columns = ["record_id", "passage_id", "document_id", "language", "strategy", "question_id", "messages"]
    rows = pq.read_table(path, columns=columns).to_pylist()
    return {
        row["record_id"]: Origin(
            row["passage_id"],
            row["document_id"],
            "/".join((row["language"], row["strategy"], row["question_id"])),
            next((m["content"] for m in reversed(row["messages"]) if m["role"] == "assistant"), ""),
        )
        for row in rows
    }


class LossWatch:
    """An ``Observer``: writes the report "anomalies" after 1, 2, 4, ... passes and at the end, from the record losses.

    It remembers nothing itself, so a resumed run's report is that of one that was never stopped.
    """

    def __init__(self, folder: WorkFolder, origins: Mapping[str, Origin], left_out: Sequence[str] = ()) -> None:
        self._folder = folder
        self.origins = origins
        self._left_out = tuple(left_out)
        self._due = 1

    def step(self, seen: StepSeen) -> None:
        passes = math.floor(seen.metrics.epoch + _ROUNDING)
        if passes >= self._due or seen.metrics.step == seen.total_steps:
            self._due = 2 * passes
            self.write(self.report())

    def evaluated(self, metrics: EvalMetrics) -> None:
        """Evaluations say nothing about single records."""

    def report(self) -> AnomalyReport:
        """What the steps so far show. Reads the whole file of record losses, about 0.1 ms a record and pass."""
        path = self._folder.record_losses
        steps = list(read_record_losses(path)) if path.exists() else []
        known = [
            Sighting(r.record_id, s.step, max(0, math.ceil(s.epoch - _ROUNDING) - 1), r.loss, r.tokens)
            for s in steps
            for r in s.records
            if math.isfinite(r.loss) and (not self.origins or r.record_id in self.origins)
        ]
        return find_anomalies(known, self.origins, steps[-1].epoch if steps else 0.0, self._left_out)

    def write(self, report: AnomalyReport) -> None:
        self._folder.reports.mkdir(exist_ok=True)
        self._folder.write(self._folder.report("anomalies"), report)


def find_anomalies(
    sightings: Sequence[Sighting], origins: Mapping[str, Origin], epochs_seen: float, left_out: Sequence[str] = ()
) -> AnomalyReport:
    """Spikes and suspects of what was seen so far."""
    records = len({s.record_id for s in sightings})
    if note := _too_little(records, epochs_seen):
        return AnomalyReport(
            records=records, epochs_seen=epochs_seen, judged=False, threshold=THRESHOLD, odd_threshold=ODD_THRESHOLD,
            note=note, left_out=left_out,
        )  # fmt: skip
    found = standings(sightings, {record_id: origin.question for record_id, origin in origins.items()})
    odd = oddities({record_id: (origin.question, origin.answer) for record_id, origin in origins.items()})
    limits = {record_id: ODD_THRESHOLD if odd.get(record_id) else THRESHOLD for record_id in found}
    outstanding = sorted((i for i, s in found.items() if s.score > limits[i]), key=lambda i: -found[i].score)
    seen = {i: _suspect(i, found[i], origins.get(i), odd.get(i, ())) for i in outstanding}
    # An answer that looks like others to its question is no slip in form, however hard it is to learn.
    surprising = {i for i in seen if i in odd and not odd[i]}
    return AnomalyReport(
        records=records,
        epochs_seen=epochs_seen,
        judged=True,
        threshold=THRESHOLD,
        odd_threshold=ODD_THRESHOLD,
        spikes=_spikes(found, set(outstanding)),
        suspects=[s for i, s in seen.items() if i not in surprising],
        surprising=[s for i, s in seen.items() if i in surprising],
        left_out=left_out,
    )


def _too_little(records: int, epochs_seen: float) -> str:
    if records < LEAST_RECORDS:
        return f"{records} records: among fewer than {LEAST_RECORDS} none can be told from its peers"
    if epochs_seen < 1:
        return f"{epochs_seen:.2f} passes: records are judged after a whole one, when each was seen beside its peers"
    return ""


def _suspect(record_id: str, standing: Standing, origin: Origin | None, odd: Sequence[str]) -> Suspect:
    seen = [
        RecordSeen(step=s.step, epoch=s.epoch, loss=s.loss, expected=expected)
        for s, expected in zip(standing.sightings, standing.expected, strict=True)
    ]
    return Suspect(
        record_id=record_id,
        passage_id=origin.passage_id if origin else None,
        document_id=origin.document_id if origin else None,
        score=standing.score,
        tokens=standing.sightings[-1].tokens,
        seen=seen,
        odd=odd,
        preview=origin.answer[:PREVIEW_CHARACTERS] if origin else "",
    )


def _spikes(found: Mapping[str, Standing], outstanding: set[str]) -> list[LossSpike]:
    """Steps whose records are far above what their peers had at that time, taken together."""
    sums: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(4))
    culprits: dict[int, list[str]] = defaultdict(list)
    for record_id, standing in sorted(found.items(), key=lambda item: -item[1].score):
        for s, expected, above in zip(standing.sightings, standing.expected, standing.above, strict=True):
            sums[s.step] += s.tokens * np.array([1.0, s.loss, expected, above])
            if record_id in outstanding:
                culprits[s.step].append(record_id)
    steps = sorted(sums)
    means = np.array([sums[step][1:] / sums[step][0] for step in steps])
    above = means[:, 2] - np.median(means[:, 2])
    return [
        LossSpike(step=step, loss=loss, expected=expected, score=score, record_ids=culprits[step])
        for step, (loss, expected, _), score in zip(
            steps, means.tolist(), (above / spread(above)).tolist(), strict=True
        )
        if score > THRESHOLD and loss - expected > LEAST_SPIKE
    ]
