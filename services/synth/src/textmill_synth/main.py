"""Wires the synth service: API, worker or both."""

from collections.abc import Mapping

from textmill.contracts.jobs import JobKind
from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.worker import Handler, Worker
from textmill_synth.api import datasets_router
from textmill_synth.freeze import FreezeHandler
from textmill_synth.mixture import MixHandler
from textmill_synth.preflight import PreflightHandler
from textmill_synth.preflight_api import preflights_router
from textmill_synth.settings import SynthSettings
from textmill_synth.worker import SynthHandler


def main() -> None:
    settings = SynthSettings()
    store, bus, jobs = open_backends("synth", settings)

    def store_answers() -> None:
        store.exists("probe/ready")

    handlers: Mapping[JobKind, Handler] = {
        "synth": SynthHandler(settings),
        "mix": MixHandler(),
        "freeze": FreezeHandler(),
        "preflight": PreflightHandler(settings),
    }
    checks = {"store": store_answers, "bus": bus.check}
    app = create_app("synth", jobs=jobs, kinds=list(handlers), checks=checks, token=settings.token)
    app.include_router(datasets_router(store, jobs))
    app.include_router(preflights_router(store, jobs))
    worker = Worker(jobs, bus, handlers, group="textmill-synth", pace=pace(settings))
    run_service(app, worker, settings)


if __name__ == "__main__":
    main()
