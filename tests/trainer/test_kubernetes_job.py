"""Runs as Kubernetes Jobs: the handler, the template that is deployed, and an API server that runs the Jobs for real.

The server is a stand-in of ours (kubernetes_server.py) for what no test machine has; the Job is the deployed template,
with the training process's stand-in as its command.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.kubernetes_server import TOKEN, ApiServer, Cluster
from tests.trainer.test_worker import DATASET, FAKE, context_of, play, put_dataset

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import ModelManifest
from textmill.errors import Cancelled, DependencyDown, Draining, JobFailed, LeaseLost, Stopped, TextmillError, Transient
from textmill.store import MemoryStore
from textmill_trainer.kubernetes_api import KubernetesApi
from textmill_trainer.kubernetes_job import KubernetesJobs, KubernetesRun, Owner, read_template
from textmill_trainer.main import open_launcher
from textmill_trainer.runstore import RunStore
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.worker import TrainHandler
from textmill_trainer.workfolder import WorkFolder

TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "k8s" / "components" / "training-jobs" / "job.yaml"
OWNER = Owner("trainer-worker-abc", "0d1f")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture
def api(cluster: Cluster, tmp_path: Path) -> Iterator[KubernetesApi]:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    server = ApiServer(cluster)
    yield KubernetesApi(server.url, "textmill", token)
    server.stop()


@pytest.fixture
def jobs(api: KubernetesApi) -> KubernetesJobs:
    template = read_template(TEMPLATE)
    template["spec"]["template"]["spec"]["containers"][0]["command"] = list(FAKE)
    return KubernetesJobs(api, template, OWNER, look_every_s=0.02)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    put_dataset(store, tmp_path)
    return store


@pytest.fixture
def handler(jobs: KubernetesJobs, tmp_path: Path) -> TrainHandler:
    settings = TrainerSettings(base_model="some/base-model", work_folder=tmp_path / "work", grace_s=15)
    return TrainHandler(settings, launcher=jobs)


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return container


def test_a_run_is_a_job_and_its_model_is_published(
    store: MemoryStore, handler: TrainHandler, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "finish")
    job = TrainJob(dataset_id=DATASET)
    output = handler(job, context_of(store, attempt=2))
    assert "model.safetensors" in ModelManifest.model_validate(output.manifest).files
    (made,) = cluster.made
    assert made["metadata"]["labels"]["textmill.io/run"] == job.run_id
    assert made["metadata"]["name"].startswith(job.run_id.replace("_", "-") + "-2-")
    assert made["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid
    assert container_of(made)["args"][0].rpartition("/")[2].startswith(f"{job.run_id}-2-")


def test_what_the_run_says_of_its_failure_is_the_jobs(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "fail")
    with pytest.raises(JobFailed, match="record rec_7 has no assistant turn"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))


def test_a_killed_pod_is_transient_and_leaves_its_checkpoint(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "die")
    job = TrainJob(dataset_id=DATASET)
    with pytest.raises(Transient, match=r"killed by signal 9 \(out of memory\?\) after step 2"):
        handler(job, context_of(store))
    found = RunStore(store, job.run_id, 2).load_checkpoint(tmp_path / "again")
    assert found is not None
    assert found.step == 2


def test_a_run_that_says_nothing_leads_to_its_log(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "no such thing")
    with pytest.raises(JobFailed, match=r"ended with code 1: the run is Kubernetes Job run-.*kubectl logs job/run-"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))


@pytest.mark.parametrize(("error", "kept"), [(Draining("bye"), 5), (Cancelled("no more"), 0), (LeaseLost("taken"), 0)])
def test_letting_go_ends_the_job(
    store: MemoryStore, handler: TrainHandler, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    error: Stopped, kept: int,
) -> None:  # fmt: skip
    """A drain gives the pod time for a checkpoint; a cancelled run is killed."""
    play(monkeypatch, "until_stopped")
    job, context = TrainJob(dataset_id=DATASET), context_of(store)

    def stop_when_ready() -> None:
        until = time.monotonic() + 120
        while not list((tmp_path / "work").glob("*/ready")) and time.monotonic() < until:
            time.sleep(0.01)
        context.stop(error)

    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    with pytest.raises(type(error)):
        handler(job, context)
    stopper.join()
    assert cluster.jobs == {}
    assert all(process.poll() is not None for process in cluster.processes.values())
    found = RunStore(store, job.run_id, 2).load_checkpoint(tmp_path / "again")
    if kept:
        assert found is not None
        assert found.step == kept


def test_a_job_that_somebody_deletes_is_transient(
    store: MemoryStore, handler: TrainHandler, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "until_stopped")

    def delete_when_ready() -> None:
        until = time.monotonic() + 120
        while not list((tmp_path / "work").glob("*/ready")) and time.monotonic() < until:
            time.sleep(0.01)
        cluster.delete(next(iter(cluster.jobs)))

    deleter = threading.Thread(target=delete_when_ready)
    deleter.start()
    with pytest.raises(Transient, match="stopped from outside after step 5"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))
    deleter.join()


def test_the_job_of_a_worker_that_died_is_ended_first(
    jobs: KubernetesJobs, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "until_stopped")
    first, second = (WorkFolder(tmp_path / f"run_{'1' * 32}-{attempt}-7") for attempt in (1, 2))
    for folder in (first, second):
        folder.root.mkdir()
        jobs.launch(folder)
    assert [name.rpartition("-7")[0][-2:] for name in cluster.jobs] == ["-2"]
    cluster.processes[f"run-{'1' * 32}-1-7"].wait(120)  # it was asked to end


def test_an_api_server_that_is_down_ends_no_run(
    jobs: KubernetesJobs, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "finish")
    folder = WorkFolder(tmp_path / f"run_{'1' * 32}-1-7")
    folder.root.mkdir()
    run = jobs.launch(folder)
    cluster.processes[f"run-{'1' * 32}-1-7"].wait(120)
    cluster.refuse, cluster.reason = 503, "etcd is electing a leader"
    time.sleep(0.03)
    assert run.poll() is None
    cluster.refuse = 0
    assert run.wait(120) == 0


def test_a_job_that_the_cluster_refuses_fails_with_its_words(
    jobs: KubernetesJobs, cluster: Cluster, tmp_path: Path
) -> None:
    folder = WorkFolder(tmp_path / f"run_{'1' * 32}-1-7")
    folder.root.mkdir()
    cluster.refuse, cluster.reason = 403, "exceeded quota: gpus"
    with pytest.raises(JobFailed, match=r"403.*Role training-jobs.*exceeded quota: gpus"):
        jobs.launch(folder)
    cluster.refuse = 500
    with pytest.raises(DependencyDown, match="answered 500"):
        jobs.launch(folder)


def test_an_eviction_without_an_exit_code_is_an_interruption(
    jobs: KubernetesJobs, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "die")
    folder = WorkFolder(tmp_path / f"run_{'1' * 32}-1-7")
    folder.root.mkdir()
    run = jobs.launch(folder)
    cluster.forgotten.add(f"run-{'1' * 32}-1-7")
    assert run.wait(120) == 3


def test_waiting_for_what_never_ends_is_bounded(api: KubernetesApi, cluster: Cluster) -> None:
    cluster.refuse = 503
    assert KubernetesRun(api, "run-x", 0.01, kill_timeout_s=0.1).wait() == 3
    with pytest.raises(subprocess.TimeoutExpired):
        KubernetesRun(api, "run-x", 0.01).wait(0.05)


def test_queue_and_gpus_come_from_the_settings(jobs: KubernetesJobs, tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / f"run_{'1' * 32}-1-7")
    plain = jobs.manifest(folder)
    assert "kueue.x-k8s.io/queue-name" not in plain["metadata"]["labels"]
    assert container_of(plain)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    queued = KubernetesJobs(jobs.api, jobs.template, queue="training", gpus=4).manifest(folder)
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert container_of(queued)["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container_of(queued)["resources"]["requests"]["nvidia.com/gpu"] == "4"
    assert "ownerReferences" not in queued["metadata"]


def test_a_template_that_is_no_job_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for text in ("kind: Pod\nspec: {template: {spec: {containers: [{}]}}}", "kind: Job\nspec: {}", "- no", ": :"):
        path.write_text(text)
        with pytest.raises(TextmillError, match="is no Kubernetes Job"):
            read_template(path)
    with pytest.raises(TextmillError, match="in no pod with a token"):
        open_launcher(TrainerSettings(job_template=TEMPLATE))
