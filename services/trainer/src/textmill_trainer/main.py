"""Wires the trainer: API, worker or both."""

from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.worker import Worker
from textmill_trainer.api import models_router, runs_router
from textmill_trainer.export import ExportHandler
from textmill_trainer.exports_api import exports_router
from textmill_trainer.forecast_api import forecast_router
from textmill_trainer.kubernetes_api import KubernetesApi
from textmill_trainer.kubernetes_job import KubernetesJobs, Owner, read_template
from textmill_trainer.launcher import ChildProcess, Launcher
from textmill_trainer.preferences_api import preferences_router
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.worker import TrainHandler


def open_launcher(settings: TrainerSettings) -> Launcher:
    """Raises ``TextmillError`` for a template that can't be used, or outside a cluster."""
    if settings.job_template is None:
        return ChildProcess()
    template = read_template(settings.job_template)
    owner = Owner.from_environment()
    return KubernetesJobs(KubernetesApi.in_cluster(), template, owner, settings.job_queue, settings.gpus)


def main() -> None:
    settings = TrainerSettings()
    store, bus, jobs = open_backends("trainer", settings)

    def store_answers() -> None:
        store.exists("probe/ready")

    checks = {"store": store_answers, "bus": bus.check}
    app = create_app("trainer", jobs=jobs, kinds=["train", "export"], checks=checks, token=settings.token)
    app.include_router(runs_router(store, jobs))
    app.include_router(models_router(store))
    app.include_router(forecast_router(store, settings))
    app.include_router(preferences_router(store))
    app.include_router(exports_router(store, jobs))
    worker = Worker(
        jobs,
        bus,
        {
            "train": TrainHandler(settings, launcher=open_launcher(settings)),
            "export": ExportHandler(settings.work_folder),
        },
        group="textmill-trainer",
        pace=pace(settings),
    )
    run_service(app, worker, settings)


if __name__ == "__main__":
    main()
