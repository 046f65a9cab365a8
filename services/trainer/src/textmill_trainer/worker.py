"""Handles train jobs: fetches the records, runs and watches the training process, publishes the model.

Training happens in a process of its own, so that running out of memory, or a crash in native code, is one failed
attempt and not a dead worker. Knows no torch.
"""

import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from textmill.contracts.jobs import Output, TrainJob
from textmill.errors import Cancelled, DependencyDown, JobFailed, LeaseLost, NotFound, Transient
from textmill.worker import JobContext
from textmill_trainer import watch
from textmill_trainer.launcher import TRAIN_COMMAND as TRAIN_COMMAND
from textmill_trainer.launcher import ChildProcess, Launcher, Training
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.mirror import Mirror
from textmill_trainer.publish import make_lineage, make_manifest, model_card
from textmill_trainer.reports import StoredReports
from textmill_trainer.runstore import RunStore, upload_folder
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.sources import TrainingSource, read_source
from textmill_trainer.trackers import Tracking, check_tracking
from textmill_trainer.workfolder import EXIT_DONE, EXIT_INTERRUPTED, TrainResult, TrainSpec, WorkFolder

T = TypeVar("T")
log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2
_PUBLISH_MARGIN_S = 5.0
"""Kept of the grace period for the upload of the last checkpoint."""


class TrainHandler:
    """One job at a time."""

    def __init__(
        self, settings: TrainerSettings, command: Sequence[str] = TRAIN_COMMAND, launcher: Launcher | None = None
    ) -> None:
        """Raises ``TextmillError`` for a tracker that can't be used."""
        check_tracking(settings.tracking_url)
        self._settings = settings
        self._launcher = launcher or ChildProcess(command)

    def __call__(self, job: TrainJob, context: JobContext) -> Output:
        """Train, merge, publish. Raises what ``textmill.worker`` says a handler may raise."""
        source = read_source(context.store, job)
        runs = RunStore(context.store, job.run_id, context.attempt)
        insist(context, lambda: runs.name_job(job.job_id))
        base_model = job.base_model or self._settings.base_model
        with self._work_folder(job, context.attempt) as folder:
            context.progress("fetching records")
            spec = TrainSpec(
                job=job,
                base_model=base_model,
                max_padded_tokens=self._settings.max_padded_tokens,
                dequantized_budget_bytes=self._settings.dequantized_budget_mb << 20,
                general_prompts=str(self._settings.general_prompts) if self._settings.general_prompts else None,
                device_hour_price=self._settings.device_hour_price,
                gpus=self._settings.gpus,
            )
            folder.write(folder.spec, spec)
            source.fetch(folder)
            checkpoint = runs.load_checkpoint(folder.checkpoints)
            with suppress(NotFound):
                forecast = StoredReports(context.store).report(job.run_id, "forecast")
                folder.report("forecast").parent.mkdir(exist_ok=True)
                folder.report("forecast").write_bytes(forecast)
            context.raise_if_stopped()
            resumed = checkpoint.step if checkpoint else 0
            log.info("training", extra={"job_id": job.job_id, "run_id": job.run_id, "resumed_from_step": resumed})
            with Tracking(self._settings.tracking_url, job) as tracking:
                Watcher(folder, runs, context, self._settings, resumed, tracking).run(self._launcher)
            return self._publish(job, context, source, base_model, folder, runs)

    @contextmanager
    def _work_folder(self, job: TrainJob, attempt: int) -> Iterator[WorkFolder]:
        """A folder of this process's own, removed at the end; those of dead processes are removed at the start."""
        root = self._settings.work_folder
        root.mkdir(parents=True, exist_ok=True)
        for left in root.iterdir():
            # One job at a time: a folder with this process's own id is of another container, whose ids were the same.
            if not _alive(left.name.rpartition("-")[2]) or left.name.endswith(f"-{os.getpid()}"):
                shutil.rmtree(left, ignore_errors=True)
        path = root / f"{job.run_id}-{attempt}-{os.getpid()}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield WorkFolder(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _publish(
        self,
        job: TrainJob,
        context: JobContext,
        source: TrainingSource,
        base_model: str,
        folder: WorkFolder,
        runs: RunStore,
    ) -> Output:
        context.progress("uploading the model")
        result = TrainResult.model_validate_json(folder.result.read_bytes())
        adapter_prefix = f"{runs.prefix}adapter/" if folder.adapter.exists() else None
        prefix = f"models/{job.model_id}/attempt-{context.attempt}/"
        lineage = make_lineage(job, source, base_model, result.base_sha256)
        manifest = make_manifest(job, lineage, result, prefix, adapter_prefix, runs.metrics_key)
        (folder.merged / "README.md").write_text(model_card(job, manifest, source))
        if adapter_prefix is not None:
            insist(context, lambda: upload_folder(context.store, folder.adapter, adapter_prefix))
        files = insist(context, lambda: upload_folder(context.store, folder.merged, prefix))
        manifest = manifest.model_copy(update={"files": files})
        return Output(manifest_key=f"models/{job.model_id}/manifest.json", manifest=manifest.model_dump(mode="json"))


class Watcher:
    """Runs the training process to its end, and keeps the store and Prometheus abreast of it."""

    def __init__(
        self,
        folder: WorkFolder,
        runs: RunStore,
        context: JobContext,
        settings: TrainerSettings,
        resumed_from: int,
        tracking: Tracking,
    ) -> None:
        self._folder = folder
        self._runs = runs
        self._context = context
        self._settings = settings
        self._tracking = tracking
        self._mirror = Mirror(folder, context.store, runs.prefix)
        self._resumed_from = resumed_from
        self._saved_step = resumed_from
        self._observed_bytes = 0
        self._metrics_sent = b""
        self._send_at = 0.0

    def run(self, launcher: Launcher) -> None:
        """Start the process and block until it has ended well.

        Raises:
            Cancelled, LeaseLost, Draining: asked to stop; unless the run is given up, its checkpoint is in the store.
            Transient: the process was killed by a signal.
            JobFailed: the process gave up; the message is its own.
        """
        watch.begin()
        process = launcher.launch(self._folder)
        try:
            while (code := process.poll()) is None:
                self._look()
                if self._context.stopping.wait(_LOOK_EVERY_S):
                    self._let_go(process)
            insist(self._context, self._send_metrics)
            insist(self._context, lambda: self._mirror.send(last=True))
            self._conclude(code)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _look(self) -> None:
        progress = self._folder.read_progress()
        if progress is not None:
            self._context.progress(progress.stage, progress.done, progress.total, progress.unit, **progress.figures)
        if time.monotonic() >= self._send_at:
            self._send_at = time.monotonic() + self._settings.upload_every_s
            try:
                self._send_metrics()
                self._mirror.send()
                self._send_checkpoint()
            except DependencyDown as exc:
                # Training needs no store: it goes on, and the next look sends what is new by then.
                log.warning("the store is down; training goes on", extra={"error": str(exc)})

    def _send_metrics(self) -> None:
        data = self._folder.metrics.read_bytes() if self._folder.metrics.exists() else b""
        if data == self._metrics_sent:
            return
        whole = data[self._observed_bytes : data.rfind(b"\n") + 1]
        metrics = list(parse_metrics(whole))
        for metric in metrics:
            watch.observe(metric, trained_here=metric.step > self._resumed_from)
        self._tracking.log(metrics)
        self._observed_bytes += len(whole)
        self._context.store.put(self._runs.metrics_key, data)
        self._metrics_sent = data

    def _send_checkpoint(self) -> None:
        """Put the newest checkpoint in the store, if it isn't there. The process drops older ones as it goes on."""
        found = sorted(self._folder.checkpoints.glob("step-*")) if self._folder.checkpoints.exists() else []
        step = int(found[-1].name.removeprefix("step-")) if found else 0
        if step <= self._saved_step:
            return
        sending = self._folder.root / "sending"
        shutil.rmtree(sending, ignore_errors=True)
        try:
            # The process drops this checkpoint once it has a newer one; links keep its files until they are sent.
            shutil.copytree(found[-1], sending, copy_function=os.link)
        except (FileNotFoundError, shutil.Error):
            return
        self._runs.save_checkpoint(sending, step)
        self._saved_step = step
        watch.CHECKPOINTS.inc()

    def _let_go(self, process: Training) -> None:
        """Stop the process; unless nobody will resume it, put its last checkpoint in the store."""
        if isinstance(self._context.stop_error, (Cancelled, LeaseLost)):
            process.kill()
            process.wait()
            self._context.raise_if_stopped()
        process.terminate()
        try:
            process.wait(timeout=max(1.0, self._settings.grace_s - _PUBLISH_MARGIN_S))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._send_metrics()
        self._send_checkpoint()
        self._mirror.send(last=True)
        self._context.raise_if_stopped()

    def _conclude(self, code: int) -> None:
        if code == EXIT_DONE:
            return
        error = self._folder.read_error()
        if code < 0 or code == EXIT_INTERRUPTED:
            insist(self._context, self._send_checkpoint)
            how = f"was killed by signal {-code}" if code < 0 else "was stopped from outside"
            why = " (out of memory?)" if code == -9 else ""
            raise Transient(f"the training process {how}{why} after step {self._saved_step}")
        if error is None:
            raise JobFailed(f"the training process ended with code {code}: {self._last_line()}")
        raise Transient(error.message) if error.retryable else JobFailed(error.message)

    def _last_line(self) -> str:
        lines = self._folder.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else "it said nothing"


def insist(context: JobContext, action: Callable[[], T]) -> T:
    """Do it, waiting while the store is down: minutes of training are not thrown away for its restart.

    Raises:
        Stopped: the handler has to let go.
    """
    while True:
        context.raise_if_stopped()
        try:
            return action()
        except DependencyDown as exc:
            log.warning("waiting for the store", extra={"error": str(exc)})
            context.stopping.wait(exc.retry_after_s)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
