"""The stages of a run, on a tiny model: what is evaluated, what is replayed, and the verdict that is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.trainer.conftest import make_record, make_records, write_records
from tests.trainer.test_worker import DATASET, put_dataset

from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import EvalMetrics
from textmill.contracts.verdict import TrainVerdict
from textmill.errors import JobFailed
from textmill.store import MemoryStore
from textmill_trainer.checkpoint import checkpoints
from textmill_trainer.forgetting import is_replay
from textmill_trainer.judging import conclude, mix_replay
from textmill_trainer.loop import Interrupted
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.objectives import objective_of
from textmill_trainer.prepare import read_records
from textmill_trainer.sources import read_source
from textmill_trainer.stages import Run, lay_out, load, prepare, resolve, train
from textmill_trainer.workfolder import TrainSpec, WorkFolder

JOB = TrainJob(
    dataset_id="ds_" + "0" * 32, epochs=2, batch_size=4, learning_rate=1e-2, rank=4, alpha=8, evaluations=2,
    checkpoints=0, packing="off",
)  # fmt: skip


def begun(root: Path, base: Path, stopping: Callable[[], bool] = lambda: False, **options: object) -> Run:
    folder = WorkFolder(root)
    job = JOB.model_copy(update=options)
    spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=512, dequantized_budget_bytes=1 << 30)
    write_records(folder.records("train"), make_records(8))
    write_records(folder.records("eval"), make_records(3, "eval"))
    asked = [make_record(f"And {r.question}", r.answer, "heldout", question_id=r.question_id) for r in make_records(8)]
    write_records(folder.records("heldout"), asked)
    return Run(folder, spec, stopping)


def trained(run: Run) -> Run:
    for stage in (prepare, resolve, load, mix_replay, lay_out):
        stage(run)
    run.objective, run.learned = objective_of(run)
    train(run)
    return run


def evals(run: Run) -> list[EvalMetrics]:
    return [m for m in parse_metrics(run.folder.metrics.read_bytes()) if isinstance(m, EvalMetrics)]


def test_a_run_ends_with_a_verdict_in_its_reports(tiny_base: Path, tmp_path: Path) -> None:
    run = trained(begun(tmp_path, tiny_base))
    verdict = conclude(run)
    written = TrainVerdict.model_validate_json(run.folder.report("verdict").read_bytes())
    assert written.to_json() == verdict.to_json()
    assert (verdict.verdict, verdict.wordings, verdict.records, verdict.replayed) == ("underfit", "heldout", 8, 0)
    assert [e.step for e in evals(run)] == [0, 2, 4]
    assert all(e.score == e.heldout_loss for e in evals(run))
    assert verdict.start is not None
    assert verdict.last is not None
    assert verdict.start.kl_to_base == 0.0
    assert verdict.last.kl_to_base is not None
    assert verdict.last.kl_to_base > 0.0
    assert verdict.last.forgetting_budget == JOB.forgetting_budget
    assert verdict.evaluating_seconds > 0
    assert verdict.sampled == {"trained": 8, "reworded": 8, "prefixed": 0, "evaluated": 3}


def test_a_run_without_evaluations_still_says_so(tiny_base: Path, tmp_path: Path) -> None:
    run = trained(begun(tmp_path, tiny_base, evaluations=0))
    assert conclude(run).verdict == "undecided"
    assert not evals(run)


def test_replay_is_trained_on_and_never_counted_as_the_datasets(tiny_base: Path, tmp_path: Path) -> None:
    run = trained(begun(tmp_path, tiny_base, replay_share=0.2))
    verdict = conclude(run)
    assert (verdict.records, verdict.replayed) == (8, 2)
    assert [is_replay(e.record_id) for e in run.examples] == [False] * 8 + [True] * 2
    assert "replay_00000" in run.folder.record_losses.read_text()
    assert verdict.sampled["trained"] == 8


def test_a_resumed_run_replays_what_its_checkpoint_has(tiny_base: Path, tmp_path: Path) -> None:
    """Another machine may answer otherwise: the file in the checkpoint counts, not what the base says now."""
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        trained(begun(tmp_path, tiny_base, lambda: next(asked), replay_share=0.2))
    assert len(checkpoints(tmp_path / "checkpoints")) == 1
    (tmp_path / "replay.json").write_text("[]")
    run = trained(begun(tmp_path, tiny_base, replay_share=0.2))
    assert run.trained.resumed_from == 2
    assert sum(is_replay(e.record_id) for e in run.examples) == 2


def test_heldout_records_are_fetched_with_the_others(tmp_path: Path) -> None:
    store = MemoryStore()
    put_dataset(store, tmp_path, train=4, evaluation=2)
    key = f"datasets/{DATASET}/manifest.json"
    manifest = DatasetManifest.model_validate_json(store.get(key))
    keys = {**manifest.records_keys, "heldout": manifest.records_keys["eval"]}
    sizes = {**manifest.records, "heldout": 2}
    store.put(key, manifest.model_copy(update={"records_keys": keys, "records": sizes}).to_json())
    folder = WorkFolder(tmp_path / "work")
    folder.root.mkdir()
    read_source(store, JOB.model_copy(update={"dataset_id": DATASET})).fetch(folder)
    assert len(read_records(folder.records("heldout"))) == 2


def test_pairs_take_no_replay(tiny_base: Path, tmp_path: Path) -> None:
    pairs = {"objective": "dpo", "dataset_id": None, "preferences_id": "prf_" + "0" * 32}
    run = begun(tmp_path, tiny_base, replay_share=0.2, **pairs)
    with pytest.raises(JobFailed, match="trains on pairs"):
        mix_replay(run)
