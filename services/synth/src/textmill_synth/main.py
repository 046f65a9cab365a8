"""Wires the synth service: API, worker or both."""

from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.worker import Worker
from textmill_synth.api import datasets_router
from textmill_synth.settings import SynthSettings
from textmill_synth.worker import SynthHandler


def main() -> None:
    settings = SynthSettings()
    store, bus, jobs = open_backends(settings)

    def store_answers() -> None:
        store.exists("probe/ready")

    checks = {"store": store_answers, "bus": bus.check}
    app = create_app("synth", jobs=jobs, kinds=["synth"], checks=checks, token=settings.token)
    app.include_router(datasets_router(store, jobs))
    worker = Worker(jobs, bus, {"synth": SynthHandler(settings)}, group="textmill-synth", pace=pace(settings))
    run_service(app, worker, settings)


if __name__ == "__main__":
    main()
