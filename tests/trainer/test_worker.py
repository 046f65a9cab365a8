"""The handler against a stand-in for the training process: what is published, what is kept, how it lets go."""

import hashlib
import sys
import threading
from pathlib import Path

import pytest
from tests.trainer.conftest import make_records, write_records

from textmill.contracts.datasets import Cost, Counts, DatasetManifest
from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import ModelManifest
from textmill.errors import (
    BadRequest,
    Cancelled,
    DependencyDown,
    Draining,
    JobFailed,
    LeaseLost,
    NotFound,
    Stopped,
    Transient,
)
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_trainer.runstore import RunStore
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.stored import StoredModels, StoredRuns
from textmill_trainer.worker import TrainHandler

FAKE = (sys.executable, str(Path(__file__).with_name("fake_train.py")))
DATASET = "ds_" + "2" * 32


def put_dataset(store: MemoryStore, folder: Path, train: int = 6, evaluation: int = 0) -> None:
    keys, sizes = {}, {"train": train, "eval": evaluation, "heldout": 0}
    for split in ("train", "eval"):
        path = folder / f"{split}.parquet"
        write_records(path, make_records(sizes[split] or 1, split))
        keys[split] = f"datasets/{DATASET}/attempt-1/{split}.parquet"
        store.put(keys[split], path.read_bytes())
    manifest = DatasetManifest.model_validate(
        {
            "dataset_id": DATASET, "corpus_id": "cor_" + "3" * 32, "records": sizes, "counts": Counts(),
            "counts_by_strategy": {}, "cost": Cost(), "calls": 0, "calls_reused": 0, "records_keys": keys,
            "rejects_key": "r", "card_key": "c", "exports": {}, "document_ids": ["doc_" + "0" * 32],
            "prompt_versions": [], "models": [],
        }
    )  # fmt: skip
    store.put(f"datasets/{DATASET}/manifest.json", manifest.to_json())


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    put_dataset(store, tmp_path)
    return store


@pytest.fixture
def handler(tmp_path: Path) -> TrainHandler:
    settings = TrainerSettings(base_model="some/base-model", work_folder=tmp_path / "work", grace_s=10)
    return TrainHandler(settings, FAKE)


def context_of(store: MemoryStore, attempt: int = 1) -> JobContext:
    return JobContext(store, attempt, "jobs/train/scratch/")


def play(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("FAKE_TRAIN", what)


def test_a_finished_run_is_published(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "finish")
    job = TrainJob(dataset_id=DATASET, epochs=4)
    output = handler(job, context_of(store, attempt=2))
    manifest = ModelManifest.model_validate(output.manifest)
    assert output.manifest_key == f"models/{job.model_id}/manifest.json"
    assert manifest.name.startswith("base-model-e4-20")
    assert manifest.prefix == f"models/{job.model_id}/attempt-2/"
    assert "model.safetensors" in manifest.files
    for name, sha256 in manifest.files.items():
        assert hashlib.sha256(store.get(manifest.prefix + name)).hexdigest() == sha256
    assert store.exists(f"{manifest.adapter_prefix}adapter_model.safetensors")
    assert manifest.lineage.document_ids == ["doc_" + "0" * 32]
    card = store.get(manifest.prefix + "README.md").decode()
    assert DATASET in card
    assert job.run_id in card
    assert not list((tmp_path / "work").iterdir())
    store.put(output.manifest_key, manifest.to_json())
    assert list(StoredModels(store).model_ids()) == [job.model_id]
    assert StoredRuns(store).run(job.run_id).last_step is not None


def test_a_crash_is_transient_and_leaves_its_checkpoint(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "die")
    job = TrainJob(dataset_id=DATASET)
    with pytest.raises(Transient, match=r"killed by signal 9 \(out of memory\?\) after step 2"):
        handler(job, context_of(store))
    found = RunStore(store, job.run_id, 2).load_checkpoint(tmp_path / "again")
    assert found is not None
    assert (found.attempt, found.step) == (1, 2)
    assert StoredRuns(store).run(job.run_id).attempt == 1


def test_an_error_of_the_process_is_the_jobs_error(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "fail")
    with pytest.raises(JobFailed, match="record rec_7 has no assistant turn"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))


def test_a_process_that_cannot_start_says_why(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, "no such thing")
    with pytest.raises(JobFailed, match="ended with code 1: KeyError"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))


@pytest.mark.parametrize(("error", "kept"), [(Draining("bye"), 5), (Cancelled("no more"), 0), (LeaseLost("taken"), 0)])
def test_letting_go(
    store: MemoryStore,
    handler: TrainHandler,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Stopped,
    kept: int,
) -> None:
    """Draining checkpoints, for the next attempt; a cancelled run is just ended."""
    play(monkeypatch, "until_stopped")
    job, context = TrainJob(dataset_id=DATASET), context_of(store)
    work = tmp_path / "work"

    def stop_when_ready() -> None:
        while not list(work.glob("*/ready")):
            threading.Event().wait(0.01)
        context.stop(error)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    with pytest.raises(type(error)):
        handler(job, context)
    found = RunStore(store, job.run_id, 2).load_checkpoint(tmp_path / "again")
    assert (found.step if found and error.code == "draining" else 0) == kept
    assert not list(work.iterdir())


def test_missing_and_empty_datasets_are_refused(store: MemoryStore, handler: TrainHandler, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        handler(TrainJob(dataset_id="ds_" + "9" * 32), context_of(store))
    put_dataset(store, tmp_path, train=0)
    with pytest.raises(BadRequest, match="no records in its train split"):
        handler(TrainJob(dataset_id=DATASET), context_of(store))


class DownAtFirst(MemoryStore):
    """Refuses its first writes, as a store does that restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    def put(self, key: str, data: bytes) -> None:
        if self.refusals:
            self.refusals -= 1
            raise DependencyDown("restarting", retry_after_s=0.01)
        super().put(key, data)


@pytest.mark.parametrize("refusals", [1, 4])
def test_a_store_that_restarts_costs_no_training(
    handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusals: int
) -> None:
    store = DownAtFirst()
    put_dataset(store, tmp_path)
    store.refusals = refusals
    play(monkeypatch, "finish")
    job = TrainJob(dataset_id=DATASET)
    manifest = ModelManifest.model_validate(handler(job, context_of(store)).manifest)
    assert store.exists(manifest.metrics_key)
    assert all(store.exists(manifest.prefix + name) for name in manifest.files)


def test_a_store_that_stays_down_lets_the_handler_go(
    handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = DownAtFirst()
    put_dataset(store, tmp_path)
    store.refusals = 1_000_000
    play(monkeypatch, "finish")
    context = context_of(store)
    threading.Timer(1.0, lambda: context.stop(Draining("bye"))).start()
    with pytest.raises((Draining, DependencyDown)):
        handler(TrainJob(dataset_id=DATASET), context)


def test_folders_of_dead_workers_are_swept(
    store: MemoryStore, handler: TrainHandler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / "work" / "run_x-1-4194305"
    left.mkdir(parents=True)
    play(monkeypatch, "fail")
    with pytest.raises(JobFailed):
        handler(TrainJob(dataset_id=DATASET), context_of(store))
    assert not left.exists()
