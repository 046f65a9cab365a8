"""Deployments on fake engines: what the store remembers and what comes back."""

import hashlib
import threading

import pytest

from textmill.contracts.gates import ParityCheck
from textmill.contracts.jobs import DeployJob
from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill.errors import BadRequest, Cancelled, JobFailed, NotFound, TextmillError
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.engine.port import ModelFolder
from textmill_inference.rollout.deployments import Deployments

ONE, TWO = "mdl_" + "1" * 32, "mdl_" + "2" * 32


PARITY = ParityCheck(
    conversations=1, prompts_identical=1, prompts_compared=1, tokens=9, top1_exact=1, top1_agreement=1, ties=0,
    tie_nats=0.1, mean_logprob_difference=0.01, max_logprob_difference=0.1, seconds=1,
)  # fmt: skip


class FakeEngine:
    parity = PARITY

    def __init__(self, name):
        self.name, self.url, self.trouble = name, "http://127.0.0.1:1", ""
        self.folder, self.ready, self.stopped, self.error = None, False, False, None

    def suspect(self):
        pass

    def serve(self, folder, stopping):
        if self.error:
            raise self.error
        if stopping.is_set():
            return None
        kind = "started" if self.folder is None else "in_place"
        self.folder, self.ready = folder, True
        return kind

    def stop(self):
        self.ready, self.stopped = False, True


def publish(store, model_id):
    data = model_id.encode()
    store.put(f"models/{model_id}/files/config.json", data)
    summary = TrainingSummary(
        steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
        tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    manifest = ModelManifest(
        model_id=model_id, name="m", prefix=f"models/{model_id}/files", adapter_prefix="", metrics_key="",
        files={"config.json": hashlib.sha256(data).hexdigest()},
        merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1), training=summary,
        lineage=Lineage(run_id="r", dataset_id="d", corpus_id="c", document_ids=(), base_model="b", base_sha256="0"),
    )  # fmt: skip
    store.put(f"models/{model_id}/manifest.json", manifest.to_json())


@pytest.fixture
def store():
    made = MemoryStore()
    for model_id in (ONE, TWO):
        publish(made, model_id)
    return made


@pytest.fixture
def engines():
    return {}


@pytest.fixture
def make(store, engines, tmp_path):
    def make_engine(name):
        engines[name] = FakeEngine(name)
        return engines[name]

    return lambda attached=None: Deployments(store, tmp_path / "cache", make_engine, "base", attached or {})


def deploy(deployments, store, model_id, name="tuned"):
    job = DeployJob(name=name, model_id=model_id)
    return job, deployments.deploy(job, JobContext(store, 1, "scratch/"))


def test_a_deployment_is_served_and_remembered(make, store, engines):
    deployments = make()
    job, output = deploy(deployments, store, ONE)
    assert output.manifest_key == f"deployments/history/{job.deployment_id}.json"
    assert output.manifest["model_id"] == ONE
    assert deployments.get("tuned").deployment_id == job.deployment_id
    assert deployments.engines()["tuned"] is engines["tuned"]
    assert deployments.get("tuned").parity == PARITY
    assert (engines["tuned"].folder.path / "config.json").read_bytes() == ONE.encode()


def test_the_next_model_takes_the_same_engine_and_the_old_folder_goes(make, store, engines, tmp_path):
    deployments = make()
    deploy(deployments, store, ONE)
    first = engines["tuned"]
    deploy(deployments, store, TWO)
    assert engines["tuned"] is first
    assert first.folder.model_id == TWO
    assert deployments.get("tuned").model_id == TWO
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [TWO]


def test_a_restarted_service_brings_all_back(make, store, engines):
    deploy(make(), store, ONE)
    engines.clear()
    store.put("deployments/history/dep_x.json", b"not a deployment of now")
    make().restore(ModelFolder("/base"))
    assert {name: engine.folder.model_id for name, engine in engines.items()} == {"base": None, "tuned": ONE}


def test_the_base_model_cannot_be_replaced(make, store):
    with pytest.raises(BadRequest, match="stays for comparison"):
        deploy(make(), store, ONE, name="base")


def test_a_model_that_is_not_published_is_not_found(make, store):
    with pytest.raises(NotFound):
        deploy(make(), store, "mdl_" + "3" * 32)


def test_a_model_that_does_not_start_is_not_listed_and_leaves_no_engine(make, store, engines, tmp_path):
    made = []

    def make_broken(name):
        engine = FakeEngine(name)
        engine.error = JobFailed("no such tensor")
        made.append(engine)
        return engine

    deployments = Deployments(store, tmp_path / "cache", make_broken, "base", {})
    with pytest.raises(JobFailed):
        deploy(deployments, store, ONE)
    assert made[0].stopped
    assert deployments.engines() == {}
    assert deployments.stored() == []


def test_a_model_that_the_engine_refuses_leaves_the_deployment_as_it_was(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    engines["tuned"].error = JobFailed("other weights")
    with pytest.raises(JobFailed, match="other weights"):
        deploy(deployments, store, TWO)
    assert deployments.get("tuned").model_id == ONE
    assert not engines["tuned"].stopped


def test_a_cancelled_deployment_is_not_remembered(make, store, engines):
    deployments = make()
    deploy(deployments, store, ONE)
    ctx = JobContext(store, 1, "scratch/")
    ctx.stop(Cancelled("by its owner"))
    with pytest.raises(Cancelled):
        deployments.deploy(DeployJob(name="tuned", model_id=TWO), ctx)
    assert deployments.get("tuned").model_id == ONE


def test_readiness_is_the_base_models(make, engines):
    deployments = make()
    with pytest.raises(TextmillError, match="not started"):
        deployments.check_base()
    deployments.restore(ModelFolder("/base"))
    deployments.check_base()
    engines["base"].ready, engines["base"].trouble = False, "it died"
    with pytest.raises(TextmillError, match="it died"):
        deployments.check_base()


def test_an_attached_base_is_not_started_here(make, engines):
    attached = FakeEngine("base")
    deployments = make({"base": attached})
    deployments.restore(ModelFolder("/base"))
    assert engines == {}
    deployments.stop()
    assert attached.stopped


def test_stop_ends_a_restore_that_still_tries(make, store, engines, waits, tmp_path):
    def make_broken(name):
        engines[name] = FakeEngine(name)
        engines[name].error = JobFailed("no model there")
        return engines[name]

    deployments = Deployments(store, tmp_path, make_broken, "base", {})
    thread = threading.Thread(target=deployments.restore, args=(ModelFolder("/base"),))
    thread.start()
    waits(lambda: "base" in deployments.engines(), "the restore to begin")
    deployments.stop()
    thread.join(5)
    assert not thread.is_alive()
