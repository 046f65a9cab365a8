"""What trackers are told, and that none of it can hold up or fail a run.

The MLflow test wants a server, named by TEXTMILL_TEST_MLFLOW_URL, and the package mlflow-skinny.
"""

import os
import threading
from pathlib import Path

import pytest

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import Draining, JobFailed, TextmillError
from textmill_trainer.trackers import EXPERIMENT, Metrics, MlflowTracker, Tracking, check_tracking, numbers

DATASET = "ds_" + "1" * 32


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number, epoch=1, loss=1 / number, learning_rate=1e-3, gradient_norm=1, tokens=1, tokens_per_s=1, seconds=1
    )


class FakeTracker:
    def __init__(self, failures: int = 0) -> None:
        self.steps: list[int] = []
        self.ended: list[str] = []
        self.failures = failures

    def __call__(self, url: str, job: TrainJob) -> "FakeTracker":
        return self

    def log(self, metrics: Metrics) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no route to host")
        self.steps += [m.step for m in metrics]

    def end(self, how: str) -> None:
        self.ended.append(how)


def test_all_arrives_in_order_and_the_end_is_told() -> None:
    fake = FakeTracker()
    with Tracking("http://tracker", TrainJob(dataset_id=DATASET), fake) as tracking:
        tracking.log([step(1), step(2)])
        tracking.log([])
        tracking.log([step(3)])
    assert (fake.steps, fake.ended) == ([1, 2, 3], ["finished"])


@pytest.mark.parametrize(("error", "how"), [(Draining("bye"), "killed"), (JobFailed("no"), "failed")])
def test_how_a_run_ended(error: TextmillError, how: str) -> None:
    fake = FakeTracker()
    with pytest.raises(type(error)), Tracking("http://tracker", TrainJob(dataset_id=DATASET), fake):
        raise error
    assert fake.ended == [how]


def test_what_could_not_be_sent_goes_with_what_comes_next() -> None:
    fake = FakeTracker(failures=2)
    with Tracking("http://tracker", TrainJob(dataset_id=DATASET), fake) as tracking:
        for number in (1, 2, 3):
            tracking.log([step(number)])
    assert fake.steps == [1, 2, 3]


def test_a_tracker_that_hangs_holds_up_nobody() -> None:
    free, logged = threading.Event(), threading.Event()

    class Hanging(FakeTracker):
        def log(self, metrics: Metrics) -> None:
            free.wait()

    tracking = Tracking("http://tracker", TrainJob(dataset_id=DATASET), Hanging()).__enter__()

    def train() -> None:
        for number in range(1, 1000):
            tracking.log([step(number)])
        logged.set()

    threading.Thread(target=train, daemon=True).start()
    assert logged.wait(120)
    free.set()
    tracking.__exit__(None, None, None)


def test_without_a_setting_nothing_happens() -> None:
    check_tracking(None)
    with Tracking(None, TrainJob(dataset_id=DATASET)) as tracking:
        tracking.log([step(1)])


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextmillError, match="'ftp://x': give http"):
        check_tracking("ftp://x")
    monkeypatch.setattr("textmill_trainer.trackers.find_spec", lambda name: None)
    with pytest.raises(TextmillError, match=r"pip install 'textmill-trainer\[mlflow\]'"):
        check_tracking("https://mlflow.example")
    with pytest.raises(TextmillError, match=r"pip install 'textmill-trainer\[wandb\]'"):
        check_tracking("wandb:/var/lib/wandb")


def test_only_numbers_are_sent() -> None:
    found = numbers(EvalMetrics(step=4, epoch=1, eval_loss=2.0, loss_by_document={"doc_1": 1.0}))
    assert found["eval/eval_loss"] == 2.0
    assert not any("doc_" in name or "document" in name for name in found)
    assert numbers(step(2))["train/loss"] == 0.5


@pytest.mark.skipif("TEXTMILL_TEST_MLFLOW_URL" not in os.environ, reason="no MLflow server to test against")
def test_mlflow_has_one_run_with_each_step_once() -> None:
    mlflow = pytest.importorskip("mlflow")
    url = os.environ["TEXTMILL_TEST_MLFLOW_URL"]
    job = TrainJob(dataset_id=DATASET, learning_rate=3e-4)
    first = MlflowTracker(url, job)
    first.log([EvalMetrics(step=0, epoch=0, eval_loss=3.0), *map(step, range(1, 1300))])
    first.end("killed")
    resumed = MlflowTracker(url, job)
    resumed.log([EvalMetrics(step=0, epoch=0, eval_loss=3.0), *map(step, range(1, 1301))])
    resumed.end("finished")
    client = mlflow.MlflowClient(url)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`textmill.run_id` = '{job.run_id}'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [(n, 1 / n) for n in range(1, 1301)]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "eval/eval_loss")] == [3.0]
    assert run.data.params["learning_rate"] == "0.0003"
    assert run.info.status == "FINISHED"


def test_wandb_makes_an_offline_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from textmill_trainer.trackers import WandbTracker

    job = TrainJob(dataset_id=DATASET)
    tracker = WandbTracker(str(tmp_path), job)
    tracker.log([EvalMetrics(step=0, epoch=0, eval_loss=3.0), step(1)])
    tracker.end("finished")
    (made,) = (tmp_path / "wandb").glob(f"offline-run-*-{job.run_id}/run-*.wandb")
    assert b"train/loss" in made.read_bytes()
