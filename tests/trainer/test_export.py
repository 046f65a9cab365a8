"""What of a model can be fetched, and the job that makes a GGUF file of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from gguf import GGUFReader
from tests.trainer.test_worker import context_of

from textmill.contracts.exports import ExportManifest
from textmill.contracts.jobs import ExportJob
from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill.errors import NotFound
from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_trainer.export import ExportHandler
from textmill_trainer.exports_api import exports_router
from textmill_trainer.runstore import upload_folder
from textmill_trainer.stored import StoredModels

MODEL = "mdl_" + "1" * 32


def put_model(store: MemoryStore, base: Path, adapter: bool = True) -> None:
    prefix = f"models/{MODEL}/attempt-1/"
    manifest = ModelManifest(
        model_id=MODEL,
        name="tiny-e1",
        prefix=prefix,
        files=upload_folder(store, base, prefix),
        adapter_prefix="runs/r/attempt-1/adapter/" if adapter else None,
        metrics_key="m",
        merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1),
        training=TrainingSummary(
            steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
            tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
        ),
        lineage=Lineage(run_id="r", document_ids=(), base_model="b", base_sha256="0"),
    )  # fmt: skip
    store.put("runs/r/attempt-1/adapter/adapter_model.safetensors", b"adapter weights")
    store.put("runs/r/attempt-1/adapter/adapter_config.json", b"{}")
    store.put(f"models/{MODEL}/manifest.json", manifest.to_json())


@pytest.fixture
def store(tiny_base: Path) -> MemoryStore:
    store = MemoryStore()
    put_model(store, tiny_base)
    return store


@pytest.fixture
def client(store: MemoryStore) -> Iterator[TestClient]:
    jobs = Jobs(store)
    app = create_app("trainer", jobs=jobs, kinds=["export"], checks={})
    app.include_router(exports_router(store, jobs))
    with TestClient(app) as client:
        yield client


def test_the_adapter_and_the_merged_model_can_be_fetched(client: TestClient, store: MemoryStore) -> None:
    files = client.get(f"/v1/models/{MODEL}/adapter").json()
    assert files == [
        {"name": "adapter_config.json", "size_bytes": 2},
        {"name": "adapter_model.safetensors", "size_bytes": 15},
    ]
    answer = client.get(f"/v1/models/{MODEL}/adapter/adapter_model.safetensors")
    assert (answer.content, answer.headers["content-length"]) == (b"adapter weights", "15")
    merged = {f["name"] for f in client.get(f"/v1/models/{MODEL}/merged").json()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= merged
    config = client.get(f"/v1/models/{MODEL}/merged/config.json").content
    assert hashlib.sha256(config).hexdigest() == StoredModels(store).manifest(MODEL).files["config.json"]


def test_a_model_becomes_a_gguf_file(client: TestClient, store: MemoryStore, tmp_path: Path) -> None:
    assert client.get(f"/v1/models/{MODEL}/exports").json() == []
    job = ExportJob(model_id=MODEL)
    output = ExportHandler(tmp_path / "work")(job, context_of(store))
    manifest = ExportManifest.model_validate(output.manifest)
    assert not list((tmp_path / "work").iterdir())
    store.put(output.manifest_key, manifest.to_json())
    (listed,) = client.get(f"/v1/models/{MODEL}/exports").json()
    assert listed["files"] == manifest.files
    (tmp_path / "x.gguf").write_bytes(client.get(f"/v1/models/{MODEL}/exports/{job.export_id}/tiny-e1.gguf").content)
    reader = GGUFReader(tmp_path / "x.gguf")  # type: ignore[no-untyped-call]
    assert len(reader.tensors) > 10
    assert list(StoredModels(store).model_ids()) == [MODEL]


def test_what_is_not_there_is_said(client: TestClient, store: MemoryStore, tiny_base: Path, tmp_path: Path) -> None:
    export = "exp_" + "2" * 32
    for path, words in (
        ("adapter/nothing.bin", "there are: adapter_config.json, adapter_model.safetensors"),
        (f"exports/{export}/x.gguf", "has no export"),
    ):
        answer = client.get(f"/v1/models/{MODEL}/{path}")
        assert answer.status_code == 404
        assert words in answer.json()["detail"]
    put_model(store, tiny_base, adapter=False)
    assert "all its weights were trained" in client.get(f"/v1/models/{MODEL}/adapter").json()["detail"]
    assert client.get("/v1/models/mdl_" + "9" * 32 + "/merged").status_code == 404
    with pytest.raises(NotFound):
        ExportHandler(tmp_path)(ExportJob(model_id="mdl_" + "9" * 32), context_of(store))


def test_an_export_is_a_job(client: TestClient) -> None:
    answer = client.post("/v1/exports", json={"model_id": MODEL})
    assert answer.status_code == 202
    assert answer.json()["job"]["format"] == "gguf"
    assert client.post("/v1/exports", json={"model_id": MODEL, "format": "onnx"}).status_code == 422
