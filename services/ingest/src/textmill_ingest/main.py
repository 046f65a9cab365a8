"""Wires the ingest service: the one place that builds its adapters from settings."""

from textmill.service import open_backends, pace, run_service
from textmill.worker import Worker
from textmill_ingest.api import build_app
from textmill_ingest.originals import sweep_uploads
from textmill_ingest.settings import IngestSettings
from textmill_ingest.worker import handlers


def main() -> None:
    settings = IngestSettings()
    store, bus, jobs = open_backends("ingest", settings)
    sweep_uploads(store)
    app = build_app(store, jobs, settings.token, settings.uploads_at_once)
    worker = Worker(jobs, bus, handlers(settings.politeness()), group="textmill-ingest", pace=pace(settings))
    run_service(app, worker, settings, on_stop=bus.close)


if __name__ == "__main__":
    main()
