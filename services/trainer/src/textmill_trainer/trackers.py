"""Runs shown in MLflow or Weights & Biases, for owners who have one. Only numbers and options leave, never text.

``TEXTMILL_TRAINER_TRACKING_URL`` says where: ``http(s)://...`` is an MLflow server (the package mlflow-skinny; its own
environment variables hold credentials), ``wandb:FOLDER`` makes offline runs for ``wandb sync`` (the package wandb). All
is sent from a thread of its own, so that a slow tracker costs training nothing. No torch.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.contracts.training import TrainOptions
from textmill.errors import Stopped, TextmillError, Transient

Metrics = Sequence[StepMetrics | EvalMetrics]
End = Literal["finished", "failed", "killed"]
EXPERIMENT = "textmill"
_RUN_TAG = "textmill.run_id"
_NOT_SENT = {"schema_version", "kind", "step", "digest"}
_LAST_WORDS_S = 15.0
_PER_REQUEST = 1_000
_LONGEST_OPTION = 500
"""Both are MLflow's own limits."""
Opening = Callable[[str, TrainJob], "Tracker"]
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """May raise anything a client library raises: only ``Tracking`` calls it."""

    def log(self, metrics: Metrics) -> None: ...

    def end(self, how: End) -> None: ...


class MlflowTracker:
    """One MLflow run for each run of ours, whichever attempt it is: a resumed one goes on where the curves end."""

    def __init__(self, url: str, job: TrainJob) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(url)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        found = self._client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{job.run_id}'")
        self._run_id = found[0].info.run_id if found else self._create(experiment_id, job)
        self._client.update_run(self._run_id, status="RUNNING")
        self._known = {key: self._last_step(key) for key in (found[0].data.metrics if found else ())}

    def log(self, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [
            Metric(name, value, now_ms, metric.step)
            for metric in metrics
            for name, value in numbers(metric).items()
            if metric.step > self._known.get(name, -1)
        ]
        for start in range(0, len(rows), _PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=rows[start : start + _PER_REQUEST])
            self._known |= {row.key: row.step for row in rows[start : start + _PER_REQUEST]}

    def end(self, how: End) -> None:
        self._client.set_terminated(self._run_id, how.upper())

    def _create(self, experiment_id: str, job: TrainJob) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(experiment_id, run_name=job.run_id, tags={_RUN_TAG: job.run_id})
        self._client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in options(job).items()])
        return str(run.info.run_id)

    def _last_step(self, name: str) -> int:
        return max(int(m.step) for m in self._client.get_metric_history(self._run_id, name))


class WandbTracker:
    """An offline run a try, each of them whole: a resumed one logs the steps before it again."""

    def __init__(self, folder: str, job: TrainJob) -> None:
        import wandb

        self._run: Any = wandb.init(
            dir=folder, project=EXPERIMENT, id=job.run_id, name=job.run_id, config=options(job), mode="offline"
        )

    def log(self, metrics: Metrics) -> None:
        for metric in metrics:
            self._run.log(numbers(metric), step=metric.step)

    def end(self, how: End) -> None:
        self._run.finish(exit_code=0 if how == "finished" else 1)


class Tracking:
    """Feeds a tracker from a thread, within ``with``. What can't be sent is tried again with what comes next."""

    def __init__(self, url: str | None, job: TrainJob, opening: Opening | None = None) -> None:
        self._opening = opening or open_tracker
        self._queue: queue.SimpleQueue[Metrics | End] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if url:
            self._thread = threading.Thread(target=self._work, args=(url, job), daemon=True, name="tracking")

    def __enter__(self) -> "Tracking":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Waits a little for what is still on its way."""
        if self._thread is not None:
            stopped = isinstance(error, Stopped | Transient)
            self._queue.put("finished" if error is None else "killed" if stopped else "failed")
            self._thread.join(_LAST_WORDS_S)

    def log(self, metrics: Metrics) -> None:
        if self._thread is not None and metrics:
            self._queue.put(metrics)

    def _work(self, url: str, job: TrainJob) -> None:
        tracker: Tracker | None = None
        unsent: list[StepMetrics | EvalMetrics] = []
        while True:
            item = self._queue.get()
            if not isinstance(item, str):
                unsent.extend(item)
            try:
                tracker = tracker or self._opening(url, job)
                tracker.log(unsent)
                unsent.clear()
                if isinstance(item, str):
                    tracker.end(item)
            except Exception as exc:
                # Whatever ails a tracker, the run is worth more.
                log.warning("the tracker can't be reached", extra={"run_id": job.run_id, "error": str(exc)[:500]})
            if isinstance(item, str):
                return


def check_tracking(url: str | None) -> None:
    """Refuse, when the service starts, an address of no tracker that we know, or one whose package isn't installed.

    Raises:
        TextmillError: with what to do.
    """
    scheme = (url or "").partition(":")[0]
    package = {"": "", "http": "mlflow", "https": "mlflow", "wandb": "wandb"}.get(scheme)
    if package is None:
        raise TextmillError(
            f"TEXTMILL_TRAINER_TRACKING_URL is {url!r}: give http(s)://HOST:PORT of an MLflow server, or wandb:FOLDER"
        )
    if package and find_spec(package) is None:
        raise TextmillError(
            f"TEXTMILL_TRAINER_TRACKING_URL is {url!r}, which needs the package {package}: "
            f"pip install 'textmill-trainer[{package}]', or leave the setting out"
        )


def open_tracker(url: str, job: TrainJob) -> Tracker:
    scheme, _, rest = url.partition(":")
    return WandbTracker(rest, job) if scheme == "wandb" else MlflowTracker(url, job)


def numbers(metric: StepMetrics | EvalMetrics) -> dict[str, float]:
    """What was measured, by name: ``train/loss``, ``eval/eval_loss``."""
    kind = "train" if isinstance(metric, StepMetrics) else "eval"
    values = metric.model_dump(exclude=_NOT_SENT, exclude_none=True)
    return {f"{kind}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}


def options(job: TrainJob) -> dict[str, str]:
    """How the run is trained."""
    return {name: str(getattr(job, name))[:_LONGEST_OPTION] for name in TrainOptions.model_fields}
