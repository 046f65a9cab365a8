"""Draws the dashboards and the main job's trace from a real run:  python docs/pictures.py [--redraw]

It starts an installation of its own with a Prometheus and a collector of traces, runs the tests' small recipe and a
load test, and stops all. What was recorded is kept in .textmill/pictures; ``--redraw`` draws that once more.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

import prometheus_server  # noqa: E402
from drawing import dashboard, trace  # noqa: E402
from installation import Installation  # noqa: E402
from recipes import small_recipe, write_recipe  # noqa: E402
from tests.collector import Collector, Span, collecting  # noqa: E402

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
FOLDER = ROOT / "docs" / "operations" / "pictures"
_KEPT = ROOT / ".textmill" / "pictures" / "run.json"
_LOOKS = 10
_LOADTEST = ("--model", "zhouyi", "-c", "1,2,4", "-s", "15", "--submit")


def queries(board: dict[str, Any]) -> list[str]:
    """All that a dashboard asks, panels and annotations."""
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return asked + [note["expr"] for note in board["annotations"]["list"]]


def record() -> dict[str, Any]:
    """Run everything; return what Prometheus and the collector have of it."""
    with tempfile.TemporaryDirectory(prefix="textmill-pictures-") as folder, collecting() as collector:
        home = Installation(Path(folder) / "home", collector.environment)
        with _running(home, Path(folder)) as prometheus:
            recipe = write_recipe(Path(folder) / "recipe", small_recipe("en", ["07-*.md", "08-*.md"]))
            _run(home, recipe)
            _textmill(home, "loadtest", *_LOADTEST, "--out", str(Path(folder) / "loadtest"))
            time.sleep(2 * prometheus_server.STEP_S)  # so that the last figures are scraped, and drawn as going back
            asked = {query for path in DASHBOARDS for query in queries(json.loads(path.read_text()))}
            answers = {query: prometheus.series(query) for query in sorted(asked)}
            return {
                "began": prometheus.began,
                "ended": time.time(),
                "cores": os.cpu_count(),
                "answers": answers,
                "spans": [asdict(span) for span in _main_job(collector)],
            }


@contextmanager
def _running(home: Installation, folder: Path) -> Iterator[prometheus_server.PrometheusServer]:
    """All services, and a Prometheus that scrapes them; stopped at the end, whatever happens."""
    try:
        _textmill(home, "up", "--detach")
        targets = prometheus_server.targets_of(dict(home.settings.urls()))
        prometheus = prometheus_server.start(folder, targets)
        try:
            yield prometheus
        finally:
            prometheus.child.stop(10)
    finally:
        _textmill(home, "down")


def _textmill(home: Installation, *arguments: str) -> str:
    """What the command prints; its failure ends this program with its words."""
    print("textmill", *arguments, flush=True)
    done = home.textmill(*arguments, timeout_s=1_800)
    if done.returncode:
        sys.exit(f"'textmill {' '.join(arguments)}' ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _run(home: Installation, recipe: Path) -> None:
    """The whole recipe. On a busy machine a service may be out of reach for a moment: then look again."""
    job_id = json.loads(_textmill(home, "run", str(recipe), "--detach", "--json"))["job"]["job_id"]
    for _ in range(_LOOKS):
        followed = home.textmill("follow", job_id, timeout_s=1_800)
        if followed.returncode == 0:
            return
        print(followed.stdout, followed.stderr, flush=True)
    sys.exit(f"the recipe didn't end well; {_LOOKS} times followed")


def _main_job(collector: Collector) -> list[Span]:
    """The recipe's trace: the spans of the trace that ``textmill run`` began."""
    [root] = [span for span in collector.spans("textmill-cli") if span.name.startswith("run ")]
    return [span for span in collector.spans() if span.trace_id == root.trace_id]


def draw(recorded: dict[str, Any]) -> None:
    """Write all pictures, and say which panels had no data."""
    FOLDER.mkdir(exist_ok=True)
    minutes = (recorded["ended"] - recorded["began"]) / 60
    words = f"the example's small recipe and a load test, {minutes:.0f} minutes on {recorded['cores']} CPU cores"
    run = dashboard.Run(recorded["began"], recorded["ended"], prometheus_server.STEP_S, words)
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        dashboard.draw(board, recorded["answers"], run).save(FOLDER / f"{path.stem}.svg")
        empty = [query for query in queries(board) if not recorded["answers"][query]]
        print(f"{path.stem}: {len(board['panels'])} panels", *(f"no data: {query}" for query in empty), sep="\n  ")
    spans = [Span(**fields | {"events": tuple(fields["events"])}) for fields in recorded["spans"]]
    trace.draw(spans, "the example's small recipe, from the upload to the served and measured model").save(
        FOLDER / "trace.svg"
    )
    print(f"trace: {len(spans)} spans")


if __name__ == "__main__":
    if sys.argv[1:] != ["--redraw"]:
        try:
            made = record()
        except pytest.skip.Exception as missing:
            sys.exit(str(missing))
        _KEPT.parent.mkdir(parents=True, exist_ok=True)
        _KEPT.write_text(json.dumps(made))
    elif not _KEPT.exists():
        sys.exit(f"nothing to draw: {_KEPT} isn't there; run docs/pictures.py without --redraw once")
    draw(json.loads(_KEPT.read_text()))
