"""Runs as Kubernetes Jobs: made from a template, watched through the API server, ended with the worker that made them.

The run's folder lies on a volume that worker and Job share, at the same path. The Job's pod reaches neither store nor
broker: records come in through the folder, checkpoints and the model go out through it. Knows nothing of training.
"""

import copy
import logging
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from textmill.errors import Conflict, DependencyDown, JobFailed, NotFound, TextmillError, Transient
from textmill_trainer.kubernetes_api import KubernetesApi, Resource
from textmill_trainer.launcher import Training
from textmill_trainer.workfolder import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, WorkFolder

log = logging.getLogger(__name__)
RUN_LABEL = "textmill.io/run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_GPU = "nvidia.com/gpu"
_SIGKILL = 9


@dataclass(frozen=True)
class Owner:
    """The worker's pod: the cluster deletes a run whose worker is gone."""

    name: str
    uid: str

    @classmethod
    def from_environment(cls) -> "Owner | None":
        name, uid = os.environ.get("POD_NAME"), os.environ.get("POD_UID")
        return cls(name, uid) if name and uid else None


@dataclass(frozen=True)
class KubernetesJobs:
    """The launcher. ``queue`` is Kueue's, ``gpus`` overrides the template's number."""

    api: KubernetesApi
    template: Resource
    owner: Owner | None = None
    queue: str = ""
    gpus: int | None = None
    look_every_s: float = 2.0

    def launch(self, folder: WorkFolder) -> Training:
        """Raises ``JobFailed`` for a Job that the cluster won't have, ``DependencyDown``, ``Transient``."""
        job = self.manifest(folder)
        name = job["metadata"]["name"]
        self._end_earlier(job["metadata"]["labels"][RUN_LABEL])
        try:
            self.api.create_job(job)
        except Conflict as exc:
            raise Transient(f"there is a Kubernetes Job {name} already: {exc}") from exc
        folder.log.write_text(f"the run is Kubernetes Job {name}; its log: kubectl logs job/{name}\n")
        log.info("kubernetes job made", extra={"kubernetes_job": name})
        return KubernetesRun(self.api, name, self.look_every_s)

    def manifest(self, folder: WorkFolder) -> Resource:
        """The template with a name, labels, the owner, the folder as its argument, and the number of GPUs."""
        job = copy.deepcopy(self.template)
        run_id = folder.root.name.rpartition("-")[0].rpartition("-")[0]
        metadata = job.setdefault("metadata", {})
        metadata["name"] = folder.root.name.lower().replace("_", "-").replace(".", "-")
        labels = metadata.setdefault("labels", {})
        labels[RUN_LABEL] = run_id
        if self.queue:
            labels[QUEUE_LABEL] = self.queue
        if self.owner is not None:
            metadata["ownerReferences"] = [
                {"apiVersion": "v1", "kind": "Pod", "name": self.owner.name, "uid": self.owner.uid}
            ]
        pod = job["spec"]["template"]
        pod.setdefault("metadata", {}).setdefault("labels", {})[RUN_LABEL] = run_id
        container = pod["spec"]["containers"][0]
        container["args"] = [str(folder.root)]
        if self.gpus is not None:
            for part in ("requests", "limits"):
                container.setdefault("resources", {}).setdefault(part, {})[_GPU] = str(self.gpus)
        return job

    def _end_earlier(self, run_id: str) -> None:
        """Of an attempt whose worker was killed: it would hold its GPUs beside this one."""
        for job in self.api.jobs(f"{RUN_LABEL}={run_id}"):
            self.api.delete_job(job["metadata"]["name"])


@dataclass
class KubernetesRun:
    """One Job. It has ended when the Job says so, or is gone with all its pods."""

    api: KubernetesApi
    name: str
    look_every_s: float = 2.0
    kill_timeout_s: float = 60.0
    _code: int | None = None
    _look_at: float = field(default=0.0)

    def poll(self) -> int | None:
        """While the API server can't be reached, the run counts as going on: it needs none."""
        if self._code is None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self.look_every_s
            try:
                self._code = self._look()
            except DependencyDown as exc:
                log.warning("the API server is down; the run goes on", extra={"error": str(exc)})
        return self._code

    def terminate(self) -> None:
        """The pod gets SIGTERM and its grace period, in which the run makes a checkpoint."""
        self._try(lambda: self.api.delete_job(self.name))
        self._look_at = 0.0

    def kill(self) -> None:
        def end() -> None:
            self.api.delete_job(self.name)
            for pod in self._pods():
                self.api.kill_pod(pod["metadata"]["name"])

        self._try(end)
        self._look_at = 0.0

    def wait(self, timeout: float | None = None) -> int:
        """Without a timeout it gives up after ``kill_timeout_s``: the Job's owner or its ttl will end what is left."""
        until = time.monotonic() + (self.kill_timeout_s if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() >= until:
                if timeout is not None:
                    raise subprocess.TimeoutExpired(self.name, timeout)
                log.warning("a kubernetes job didn't end", extra={"kubernetes_job": self.name})
                return EXIT_INTERRUPTED
            time.sleep(min(0.2, self.look_every_s))
        return code

    def _look(self) -> int | None:
        try:
            status = self.api.job(self.name).get("status", {})
        except NotFound:
            return None if self._pods() else EXIT_INTERRUPTED
        conditions = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
        if "Complete" in conditions:
            return EXIT_DONE
        if "Failed" in conditions:
            return self._why(conditions["Failed"])
        return None

    def _why(self, failed: Resource) -> int:
        """The exit code of the pod that failed. Evicted or lost without one: as if it had been interrupted."""
        if failed.get("reason") == "PodFailurePolicy":
            return EXIT_FAILED
        ends = [end for pod in self._pods() if (end := _terminated(pod)) is not None]
        if not ends:
            log.warning(
                "kubernetes job failed", extra={"kubernetes_job": self.name, "reason": failed.get("reason", "")}
            )
            return EXIT_INTERRUPTED
        last = max(ends, key=lambda end: str(end.get("finishedAt", "")))
        code = int(last["exitCode"])
        if last.get("reason") == "OOMKilled":
            return -_SIGKILL
        return 128 - code if code > 128 else code

    def _pods(self) -> list[Resource]:
        return self.api.pods(f"batch.kubernetes.io/job-name={self.name}")

    def _try(self, action: Any) -> None:
        try:
            action()
        except DependencyDown as exc:
            log.warning("the API server is down", extra={"kubernetes_job": self.name, "error": str(exc)})


def _terminated(pod: Resource) -> Resource | None:
    for status in pod.get("status", {}).get("containerStatuses", []):
        end: Resource | None = status.get("state", {}).get("terminated")
        if end is not None:
            return end
    return None


def read_template(path: Path) -> Resource:
    """Raises ``TextmillError`` for what is no Job."""
    try:
        job = yaml.safe_load(path.read_text())
        job["spec"]["template"]["spec"]["containers"][0]
        if job["kind"] != "Job":
            raise JobFailed(f"it is a {job['kind']}")
    except (OSError, yaml.YAMLError, KeyError, TypeError, IndexError, JobFailed) as exc:
        raise TextmillError(
            f"TEXTMILL_TRAINER_JOB_TEMPLATE={path} is no Kubernetes Job with a container: {exc}"
        ) from exc
    found: Resource = job
    return found
