"""Walks along a chain of jobs and shows how far it has come. Survives services that go away for a while."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from textmill.contracts.jobs import JobView
from textmill.errors import DependencyDown, JobFailed, NotFound, Transient
from textmill_cli.client import Client

_TITLES = {
    "crawl": "fetching pages", "corpus": "splitting into passages", "synth": "making records", "train": "training",
    "preflight": "trying a few passages", "mix": "mixing datasets", "freeze": "freezing the review",
    "export": "exporting the model", "deploy": "deploying", "evaluate": "asking base and tuned model",
    "loadtest": "load test", "compare": "asking the models in turn", "harvest": "keeping the traffic",
}  # fmt: skip


@dataclass
class Followed:
    """The jobs of a chain that have ended, in order."""

    views: list[JobView]

    @property
    def failed(self) -> JobView | None:
        return next((v for v in self.views if v.result is not None and v.result.state != "succeeded"), None)


def watch(
    client: Client, job_id: str, patience_s: float = 180.0, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[JobView]:
    """Each look at the job that is on, then at the next, until the chain ends or a job does not succeed.

    Raises:
        Transient: the services were out of reach for ``patience_s``.
    """
    view = _look(lambda: client.find_job(job_id), patience_s, meanwhile)
    while True:
        yield view
        if view.finished:
            if view.result is None or view.result.state != "succeeded" or view.next_job_id is None:
                return
            kind, job_id = view.job.then[0].kind, view.next_job_id
        else:
            time.sleep(0.5)
            kind, job_id = view.job.kind, view.job.job_id
        meanwhile()
        view = _look(lambda kind=kind, job_id=job_id: client.job(kind, job_id), patience_s, meanwhile)  # type: ignore[misc]


def _look(ask: Callable[[], JobView], patience_s: float, meanwhile: Callable[[], None]) -> JobView:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except (DependencyDown, NotFound) as exc:
            # A follower of a finished job is not there yet for a moment; a service may be starting again.
            if time.monotonic() > deadline:
                raise Transient(f"{exc}; 'textmill follow JOB' goes on when the services are back") from exc
            meanwhile()
            time.sleep(0.5)


def follow(client: Client, job_id: str, console: Console, meanwhile: Callable[[], None] = lambda: None) -> Followed:
    """Show a bar for each job of the chain. Raises ``JobFailed`` when one fails, with what to do."""
    ended: list[JobView] = []
    with Bars(console) as bars:
        for view in watch(client, job_id, meanwhile=meanwhile):
            bars.show(view)
            if view.finished:
                ended.append(view)
    followed = Followed(ended)
    if followed.failed is not None:
        raise JobFailed(explain_failure(followed.failed))
    return followed


def explain_failure(view: JobView) -> str:
    job = view.job
    if view.result is None or view.result.failure is None:
        return f"{job.kind} {job.job_id} was {view.state}"
    return (
        f"{job.kind} {job.job_id} failed: {view.result.failure.message}\n"
        f"After mending the cause: textmill jobs replay {job.job_id}"
    )


class Bars:
    """One bar for each job: what it is doing, how much of it is done, how long it has taken and will take."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._console = console

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, view: JobView) -> None:
        job_id = view.job.job_id
        title = _TITLES[view.job.kind]
        if job_id not in self._tasks:
            self._tasks[job_id] = self._progress.add_task(title, total=None, unit="", figures="")
            if not self._console.is_terminal:
                self._console.print(f"{title} ({job_id})")
        task = self._tasks[job_id]
        if view.finished:
            self._finish(task, view)
        elif view.state == "queued":
            waits = f": {view.last_error}" if view.last_error else ""
            self._progress.update(task, description=f"{title}, waiting{waits}"[:44])
        elif view.progress is not None:
            now = view.progress
            figures = "  ".join(f"{name} {value:.4g}" for name, value in now.figures.items())
            self._progress.update(
                task,
                description=f"{title}: {now.stage}"[:44],
                completed=now.done,
                total=now.total,
                unit=now.unit,
                figures=figures,
            )

    def _finish(self, task: TaskID, view: JobView) -> None:
        state = view.result.state if view.result else ""
        title = f"{_TITLES[view.job.kind]}{'' if state == 'succeeded' else ': ' + state}"
        done = self._progress.tasks[self._progress.task_ids.index(task)]
        total = done.total or 1
        self._progress.update(task, description=title, completed=total, total=total)
        if not self._console.is_terminal:
            self._console.print(f"{title}: {state} after {done.elapsed or 0:.0f} s")
