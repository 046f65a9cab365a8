"""What the loss watch adds to a run: records left out from the start, the watch itself, and the replay at the end."""

from typing import TYPE_CHECKING

from peft import PeftModel

from textmill.contracts.jobs import Progress, TrainJob
from textmill.errors import JobFailed
from textmill_trainer.losswatch import LossWatch, read_origins
from textmill_trainer.quarantine import LEAST_CONTROLS, count, judge, keep_all_but, plan_replay
from textmill_trainer.replay import copy_weights, replay

if TYPE_CHECKING:
    from textmill_trainer.stages import Run


def leave_out(run: "Run") -> None:
    """Take the records that the job names out of the train split, before anything reads it. Raises ``JobFailed``."""
    if run.job.leave_out:
        _needs_records(run.job, "leave_out")
        keep_all_but(run.folder.records("train"), run.job.leave_out)


def watch_losses(run: "Run") -> None:
    """Have the losses watched. Called once the model is loaded and before it is trained. Raises ``JobFailed``."""
    if run.job.quarantine == "off":
        return
    if run.job.quarantine == "replay":
        _needs_records(run.job, "quarantine: replay")
        if not isinstance(run.model, PeftModel):
            raise JobFailed("quarantine: replay starts again from the base, which method full overwrites: use report")
        run.start = copy_weights(run.model)
    run.watch = LossWatch(run.folder, read_origins(run.folder.records("train")), run.job.leave_out)
    run.observers.append(run.watch)


def settle_suspects(run: "Run") -> None:
    """Write the last word on the records that stood out, after a replay where the job asks for one.

    Raises ``Interrupted`` when asked to stop in the replay: the run is then resumed from its last checkpoint.
    """
    if run.watch is None:
        return
    report = run.watch.report()
    if run.job.quarantine == "replay" and report.suspects:
        plan = plan_replay(report.suspects, run.watch.origins, run.job.seed)
        losses: dict[str, float] = {}
        if len(plan.controls) >= LEAST_CONTROLS:
            run.folder.write(run.folder.progress, Progress(stage="replaying without the suspects"))
            losses = replay(
                run.model,
                run.start,
                run.objective,
                run.examples,
                plan.left_out,
                run.settings,
                run.trained.total_steps,
                run.folder.root / "quarantine",
                run.stopping,
            )
        report = judge(report, plan, losses)
    run.watch.write(report)
    run.anomalies = count(report)


def _needs_records(job: TrainJob, option: str) -> None:
    if job.objective != "supervised":
        raise JobFailed(f"{option} is about records of a dataset, and objective {job.objective!r} has none: remove it")
