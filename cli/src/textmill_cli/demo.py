"""The main job from nothing to a report. Any process it started may be killed meanwhile; it ends well all the same."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from textmill.contracts.jobs import JobView
from textmill.errors import JobFailed
from textmill_cli import report
from textmill_cli.client import Client
from textmill_cli.follow import follow
from textmill_cli.local import up as local
from textmill_cli.recipe import load
from textmill_cli.settings import CliSettings

_READY_S = 300


def play(
    settings: CliSettings,
    recipe: Path,
    folder: Path,
    keep: bool,
    console: Console,
    submit: Callable[[Client, Path], JobView],
) -> Path:
    """Returns the page's path. Stops everything at the end, also after an error, unless ``keep``.

    Raises:
        JobFailed: a job of the recipe failed, or the report lacks a part that the recipe asks for.
    """
    began = time.monotonic()
    name = load(recipe).name
    client = Client(settings)
    was_up = local.supervisor_pid(settings) is not None
    try:
        local.start_detached(settings)
        with console.status("starting object store, broker, services and engine (about a minute)") as status:
            local.wait_ready(settings, _READY_S, lambda found: status.update(_starting(found)))
        console.print(f"everything is up after {time.monotonic() - began:.0f} s")
        view = submit(client, recipe)
        elsewhere = f"textmill follow {view.job.job_id}"
        console.print(f"submitted; to watch it elsewhere: {elsewhere}", highlight=False, soft_wrap=True)
        followed = follow(client, view.job.job_id, console, lambda: _revive(settings, console))
        found = report.gather(client, followed.views[0].job.job_id)
        seconds = round(time.monotonic() - began, 1)
        page = report.write(found, folder, name, seconds)
        _summarize(found, seconds, page, console)
        return page
    finally:
        if not keep and not was_up:
            console.print("stopping everything")
            local.stop(settings)


def _starting(found: list[local.ProcessState]) -> str:
    waiting = [state.name for state in found if not state.ready]
    return f"starting: waiting for {', '.join(waiting)}" if waiting else "starting"


def _revive(settings: CliSettings, console: Console) -> None:
    """The supervisor starts again what dies; this does it for the supervisor."""
    if local.supervisor_pid(settings) is None:
        console.print("the supervisor is gone; starting it again")
        local.start_detached(settings)
        time.sleep(1.0)


def _summarize(found: report.Findings, seconds: float, page: Path, console: Console) -> None:
    if found.dataset is None or found.model is None or found.evaluation is None:
        there = page.with_suffix(".json")
        raise JobFailed(f"the run ended without a dataset, a model or an evaluation; {there} shows what is there")
    counts = found.dataset.counts
    before, after = found.evaluation.before, found.evaluation.after
    console.print(
        f"records: {counts.requested} requested, {counts.accepted} accepted, {counts.rejected} rejected, "
        f"{counts.dead_lettered} dead-lettered"
    )
    right = f"{before.accuracy:.0%} before, {after.accuracy:.0%} after ({after.questions} questions)"
    console.print(f"held-out questions right: {right}")
    console.print(f"report after {seconds:.0f} s: {page.resolve()}", highlight=False, soft_wrap=True)
