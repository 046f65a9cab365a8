"""The gauges of a run."""

import math
from pathlib import Path

from prometheus_client import REGISTRY

from textmill.contracts.anomalies import AnomalyReport, Suspect, SuspectVerdict
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.store import MemoryStore
from textmill_trainer import watch
from textmill_trainer.mirror import Mirror
from textmill_trainer.workfolder import WorkFolder

STEP = StepMetrics(
    step=7, epoch=1, loss=0.5, learning_rate=1e-3, gradient_norm=2, tokens=30, tokens_per_s=40, seconds=1,
    memory_bytes=1 << 30,
)  # fmt: skip


def gauge(name: str) -> float:
    value = REGISTRY.get_sample_value(f"textmill_train_{name}")
    assert value is not None
    return value


def test_a_step_shows() -> None:
    watch.observe(STEP)
    names = ("loss_nats", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes", "step")
    assert [gauge(n) for n in names] == [0.5, 1e-3, 2, 40, 1 << 30, 7]


def test_only_tokens_trained_here_are_counted() -> None:
    before = gauge("tokens_total")
    watch.observe(STEP, trained_here=False)
    assert gauge("tokens_total") == before
    watch.observe(STEP)
    assert gauge("tokens_total") == before + 30


def test_what_an_evaluation_did_not_measure_stays_unknown() -> None:
    watch.begin()
    watch.observe(EvalMetrics(step=7, epoch=1, heldout_loss=1.5, kl_to_base=0.25))
    assert (gauge("heldout_loss_nats"), gauge("kl_to_base_nats")) == (1.5, 0.25)
    assert math.isnan(gauge("eval_loss_nats"))
    watch.begin()
    assert math.isnan(gauge("heldout_loss_nats"))


def test_suspects_are_counted_from_the_report_unless_cleared(tmp_path: Path) -> None:
    def suspect(verdict: SuspectVerdict) -> Suspect:
        return Suspect(
            record_id="rec_1",
            passage_id=None,
            document_id=None,
            score=9,
            tokens=5,
            seen=(),
            preview="",
            verdict=verdict,
        )

    folder = WorkFolder(tmp_path)
    suspects = [suspect("suspected"), suspect("confirmed"), suspect("cleared")]
    report = AnomalyReport(records=9, epochs_seen=1, judged=True, threshold=4, suspects=suspects)
    folder.write(folder.report("anomalies"), report)
    Mirror(folder, MemoryStore(), "runs/r/attempt-1/").send()
    assert gauge("suspects") == 2


def test_no_label_anywhere() -> None:
    """Ids in labels would make a new series for each run."""
    for family in REGISTRY.collect():
        if family.name.startswith("textmill_train_"):
            assert all(not sample.labels for sample in family.samples), family.name
