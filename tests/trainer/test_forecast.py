"""The arithmetic of forecasts, and the route that forecasts without loading torch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.trainer.conftest import make_records
from tests.trainer.test_worker import DATASET, FAKE, context_of, put_dataset

from textmill.contracts.jobs import TrainJob
from textmill.contracts.preflight import Interval
from textmill.contracts.trainforecast import MeasuredStep, TrainForecast
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_trainer.forecast import Extent, between, cost_of, seconds_by_stage, tokens_per_s
from textmill_trainer.forecast_api import forecast_router
from textmill_trainer.geometry import read_geometry
from textmill_trainer.prepare import encode_all
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.worker import TrainHandler


def step(tokens: int, seconds: float, warm: bool) -> MeasuredStep:
    return MeasuredStep(
        tokens=tokens, padded_tokens=tokens, seconds=seconds, grown_bytes=None, formula_bytes=0, warm=warm
    )


def test_time_is_counted_by_stage(tiny_base: Path) -> None:
    extent = Extent(steps=10, tokens=10_000, evaluations=4, eval_tokens=500, checkpoints=2)
    geometry = read_geometry(tiny_base)
    stages = seconds_by_stage(extent, 100.0, geometry, "qlora", trained=1_000_000, sweep_s=7.0)
    assert stages["training"] == 100.0
    assert stages["evaluations"] == pytest.approx(5 * 500 / 200)
    assert stages["sweep"] == 7.0
    full = seconds_by_stage(extent, 100.0, geometry, "full", trained=1_000_000)
    assert full["evaluations"] == pytest.approx(5 * 500 / 300)
    assert "sweep" not in full


def test_a_cold_step_alone_widens_the_interval_downwards() -> None:
    cold, warm = step(100, 2.0, warm=False), step(100, 1.0, warm=True)
    assert tokens_per_s([cold, warm]) == 100.0
    wide, narrow = between(10.0, [cold]), between(10.0, [cold, warm])
    assert (narrow.low, narrow.high) == (7.5, 12.5) == (between(10.0).low, between(10.0).high)
    assert (wide.low, wide.high) == (3.75, 12.5)
    assert cost_of(Interval(expected=7_200, low=3_600), 2.0) == Interval(expected=4.0, low=2.0)
    assert cost_of(None, 2.0) is cost_of(narrow, 0.0) is None


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    put_dataset(store, tmp_path, train=12, evaluation=3)
    return store


@pytest.fixture
def client(store: MemoryStore, tiny_base: Path) -> Iterator[TestClient]:
    jobs = Jobs(store, ring=lambda kind, job_id: None, bury=lambda kind, value, reason: None)
    app = create_app("trainer", jobs=jobs, kinds=["train"], checks={})
    app.include_router(forecast_router(store, TrainerSettings(base_model=str(tiny_base), device_hour_price=2.0)))
    with TestClient(app) as client:
        yield client


def ask(client: TestClient, **options: Any) -> TrainForecast:
    answer = client.post("/v1/runs/forecast", json={"dataset_id": DATASET, "epochs": 2, "batch_size": 4, **options})
    assert answer.status_code == 200, answer.text
    return TrainForecast.model_validate_json(answer.content)


def test_a_run_is_forecast_by_formula(client: TestClient, tokenizer: Any) -> None:
    """Tokens are within what it says they are off by."""
    found = ask(client, learning_rate="auto", rank="auto")
    tokens = 2 * sum(len(e.token_ids) for e in encode_all(make_records(12), tokenizer, 500))
    assert found.steps == 6
    assert found.tokens.low is not None
    assert found.tokens.high is not None
    assert found.tokens.low <= tokens <= found.tokens.high
    assert found.rank == 16
    assert found.memory.total_bytes > 2 * found.parameters
    assert (found.seconds, found.cost) == (None, None)
    assert any("time isn't known" in note for note in found.notes)


def test_a_known_speed_gives_time_and_cost(client: TestClient) -> None:
    found = ask(client, tokens_per_s=50)
    assert found.seconds_by_stage["training"] == pytest.approx(found.tokens.expected / 50)
    assert found.seconds is not None
    assert found.cost is not None
    assert found.cost.expected == pytest.approx(found.seconds.expected / 1_800)


def test_what_cannot_be_forecast_says_why(client: TestClient) -> None:
    def refused(**options: Any) -> tuple[int, str]:
        answer = client.post("/v1/runs/forecast", json={"dataset_id": DATASET, **options})
        return answer.status_code, answer.json()["detail"]

    assert refused(dataset_id="ds_" + "9" * 32)[0] == 404
    status, detail = refused(base_model="some/model")
    assert status == 400
    assert "not a folder on this machine" in detail
    assert refused(objective="dpo")[0] == 400


def test_the_route_loads_no_torch() -> None:
    script = "import sys, textmill_trainer.forecast_api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_resumed_attempt_is_given_the_forecast_of_the_one_before(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the work folder, and so among this attempt's own reports."""
    monkeypatch.setenv("FAKE_TRAIN", "finish")
    job = TrainJob(dataset_id=DATASET, learning_rate="sweep", rank="auto")
    store.put(f"runs/{job.run_id}/attempt-1/reports/forecast.json", b'{"learning_rate": 0.002}')
    settings = TrainerSettings(base_model="some/base-model", work_folder=tmp_path / "work")
    TrainHandler(settings, FAKE)(job, context_of(store, attempt=2))
    assert store.get(f"runs/{job.run_id}/attempt-2/reports/forecast.json") == b'{"learning_rate": 0.002}'
