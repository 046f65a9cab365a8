"""A load test without services, for the command line: ``python -m textmill_inference.loadtest.standalone FOLDER``.

Reads a ``LoadtestJob`` on standard input, writes its events to standard output (JSON lines), and report.html,
report.json, report.csv, series.json and stages/ into the folder. An error is a last line {"error": ...}, exit code 1.
A key is taken from the variable that ``key_from`` names, whichever that is: who starts this owns the variables.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter

from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.loadoptions import LoadtestEvent
from textmill.errors import Cancelled, TextmillError
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.loadtest.job import Loadtester
from textmill_inference.loadtest.keyrefs import KeySource


def main() -> None:
    folder = Path(sys.argv[1])
    ctx = JobContext(MemoryStore(), 1, "scratch/")

    def stop(number: int, frame: FrameType | None) -> None:
        ctx.stop(Cancelled("stopped from outside"))

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        job = LoadtestJob.model_validate_json(sys.stdin.buffer.read())
        play(job, folder, ctx)
    except TextmillError as exc:
        print(json.dumps({"error": {"code": exc.code, "message": str(exc)}}), flush=True)
        sys.exit(1)


def play(job: LoadtestJob, folder: Path, ctx: JobContext) -> None:
    """Raises what a load test raises; what it has stored by then is in the folder."""
    tester = Loadtester(job.target_url or "", keys=KeySource(prefix=""), listener=_print)
    try:
        report = tester(job, ctx).manifest
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_bytes(TypeAdapter(object).dump_json(report, indent=1))
    finally:
        _save(ctx, folder)


def _save(ctx: JobContext, folder: Path) -> None:
    """The files of loadtests/<id>/<part>/, without that prefix."""
    for info in list(ctx.store.list("loadtests/")):
        path = folder.joinpath(*info.key.split("/")[3:])
        if "/events/" not in info.key and path != folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ctx.store.get(info.key))


def _print(event: LoadtestEvent) -> None:
    print(event.line(), flush=True)


if __name__ == "__main__":
    main()
