"""A service with a toy handler, run as a process of its own: each attempt leaves a mark and works until its gate opens.

The marks lie in the same store: ``begun/<job>/<attempt>`` holds the process id, ``gate/<job>`` or ``gate/all`` opens.
"""

import os
import time

from pydantic_settings import SettingsConfigDict

from textmill.contracts.jobs import CorpusJob, Output
from textmill.http import create_app
from textmill.service import open_backends, pace, run_service
from textmill.settings import ServiceSettings
from textmill.worker import JobContext, Worker


class GatedSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TEXTMILL_GATED_")


def work(job: CorpusJob, ctx: JobContext) -> Output:
    ctx.store.create(f"begun/{job.job_id}/{ctx.attempt}", str(os.getpid()).encode())
    while not (ctx.store.exists(f"gate/{job.job_id}") or ctx.store.exists("gate/all")):
        ctx.raise_if_stopped()
        time.sleep(0.05)
    return Output(
        manifest_key=f"corpora/{job.corpus_id}/manifest.json", manifest={"attempt": ctx.attempt, "pid": os.getpid()}
    )


def main() -> None:
    settings = GatedSettings()
    _, bus, jobs = open_backends("gated", settings)
    worker = Worker(jobs, bus, {"corpus": work}, group="gated", pace=pace(settings))
    app = create_app("gated", jobs=jobs, kinds=("corpus",), checks={"bus": bus.check}, token=settings.token)
    run_service(app, worker, settings, on_stop=bus.close)


if __name__ == "__main__":
    main()
