"""What a run settles before its first step, on real stages with a tiny model."""

from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import make_records, write_records
from tests.trainer.test_worker import DATASET

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import TrainingSummary
from textmill.contracts.trainforecast import Setup, TrainForecast
from textmill.errors import JobFailed
from textmill_trainer import beforehand, stages
from textmill_trainer.beforehand import rehearse
from textmill_trainer.memory import peak, total
from textmill_trainer.objectives import objective_of
from textmill_trainer.stages import Run
from textmill_trainer.workfolder import TrainSpec, WorkFolder


def prepared(root: Path, base: Path, **changes: Any) -> Run:
    folder = WorkFolder(root)
    root.mkdir(exist_ok=True)
    job = TrainJob(dataset_id=DATASET, **{"epochs": 4, "batch_size": 2, "rank": 4, "alpha": 8, **changes})
    spec = TrainSpec(
        job=job, base_model=str(base), max_padded_tokens=512, dequantized_budget_bytes=1 << 30, device_hour_price=3.6
    )
    write_records(folder.records("train"), make_records(8))
    write_records(folder.records("eval"), make_records(2, "eval"))
    run = Run(folder, spec, lambda: False)
    stages.prepare(run)
    stages.resolve(run)
    return run


def rehearsed(root: Path, base: Path, **changes: Any) -> tuple[Run, TrainForecast]:
    run = prepared(root, base, **changes)
    stages.load(run)
    stages.lay_out(run)
    run.objective, run.learned = objective_of(run)
    run.forecast = rehearse(run, run.chosen)
    return run, TrainForecast.model_validate_json(run.folder.report("forecast").read_bytes())


def test_the_report_is_written_before_the_first_step(tiny_base: Path, tmp_path: Path) -> None:
    run, forecast = rehearsed(tmp_path, tiny_base, learning_rate=1e-3)
    assert forecast.to_json() == run.forecast.to_json()
    assert not run.folder.metrics.exists()
    assert (forecast.steps, forecast.learning_rate, forecast.rank) == (16, 1e-3, 4)
    assert forecast.tokens.expected == 4 * sum(len(e.token_ids) for e in run.examples)
    assert forecast.trained_parameters == sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert [step.warm for step in forecast.probe] == [False, True]
    assert forecast.probe[0].tokens >= forecast.probe[1].tokens
    assert forecast.seconds is not None
    assert forecast.seconds.expected == pytest.approx(sum(forecast.seconds_by_stage.values()))
    assert forecast.cost is not None
    assert forecast.cost.expected == pytest.approx(forecast.seconds.expected / 1_000)
    assert forecast.setup == forecast.asked == Setup(max_padded_tokens=512)


def test_a_swept_rate_goes_on_and_a_resumed_run_keeps_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its rank and its setup. Without a checkpoint there is nothing to keep them for."""
    run, forecast = rehearsed(tmp_path, tiny_base, learning_rate="sweep", rank="auto", alpha=32)
    assert forecast.sweep is not None
    assert run.settings.learning_rate == forecast.learning_rate == forecast.sweep.chosen
    assert [e.option for e in forecast.evidence] == ["rank", "learning_rate"]

    monkeypatch.setattr(beforehand, "sweep", lambda *a, **k: pytest.fail("swept again"))
    (run.folder.checkpoints / "step-00000003").mkdir(parents=True)
    changed = forecast.model_copy(update={"learning_rate": 4.2e-4, "rank": 8, "setup": Setup(max_padded_tokens=256)})
    run.folder.write(run.folder.report("forecast"), changed)
    resumed, again = rehearsed(tmp_path, tiny_base, learning_rate="sweep", rank="auto", alpha=32)
    assert (resumed.settings.learning_rate, resumed.lora.rank) == (4.2e-4, 8)
    assert resumed.settings.max_padded_tokens == 256
    assert (again.sweep, again.evidence) == (forecast.sweep, forecast.evidence)
    (run.folder.checkpoints / "step-00000003").rmdir()
    assert prepared(tmp_path, tiny_base, rank="auto").lora.rank == 16


def test_too_little_memory_cuts_smaller_or_refuses(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch size stays; a run that can't fit fails before the model is loaded."""
    monkeypatch.setattr(beforehand, "available_bytes", lambda device: 10**12)
    plenty = prepared(tmp_path, tiny_base, batch_size=8)
    load = plenty.chosen.rows.load(plenty.job, plenty.chosen.setup, plenty.chosen.rank, cuda=False)
    need = total(peak(plenty.chosen.geometry, load))
    monkeypatch.setattr(beforehand, "available_bytes", lambda device: round(need * 1.1) - 1_000)
    tight = prepared(tmp_path, tiny_base, batch_size=8)
    assert tight.chosen.setup != plenty.chosen.setup
    assert tight.settings.max_padded_tokens < plenty.settings.max_padded_tokens
    assert tight.settings.batch_size == 8
    monkeypatch.setattr(beforehand, "available_bytes", lambda device: 10**7)
    with pytest.raises(JobFailed, match=r"0\.01 GB are free"):
        prepared(tmp_path, tiny_base)


def test_what_became_of_the_forecast_is_in_it(tiny_base: Path, tmp_path: Path) -> None:
    run, forecast = rehearsed(tmp_path, tiny_base, learning_rate="auto")
    done = TrainingSummary(
        steps=16, epochs=4, first_loss=2, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=900,
        tokens_per_s=1, seconds=forecast.seconds_by_stage["training"] / 2, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    told = beforehand.look_back(run, done)
    assert (told.learning_rate, told.rank) == (forecast.learning_rate, 4)
    settled = TrainForecast.model_validate_json(run.folder.report("forecast").read_bytes())
    assert settled.truth is not None
    assert settled.truth.seconds_off == pytest.approx(1.0)
