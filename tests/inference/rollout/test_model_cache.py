import hashlib

import pytest

from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill.errors import JobFailed, NotFound
from textmill.store import MemoryStore
from textmill_inference.rollout.model_cache import fetch, prune, read_manifest

MODEL = "mdl_" + "1" * 32


def publish(store, files, model_id=MODEL):
    prefix = f"models/{model_id}/files/"
    for name, data in files.items():
        store.put(prefix + name, data)
    manifest = ModelManifest(
        model_id=model_id,
        name="small-e3",
        prefix=prefix,
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        adapter_prefix="",
        metrics_key="",
        merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1),
        training=TrainingSummary(
            steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
            tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
        ),
        lineage=Lineage(
            run_id="r", dataset_id="d", corpus_id="c", document_ids=(), base_model="b", base_sha256="0",
        ),
    )  # fmt: skip
    store.put(f"models/{model_id}/manifest.json", manifest.to_json())
    return manifest


def test_a_model_is_fetched_once_and_complete(tmp_path):
    store = MemoryStore()
    manifest = publish(store, {"config.json": b"{}", "sub/model.safetensors": b"w" * 3_000_000})
    sizes = []
    folder = fetch(store, read_manifest(store, MODEL), tmp_path, sizes.append)
    assert folder.model_id == MODEL
    assert (folder.path / "sub/model.safetensors").read_bytes() == b"w" * 3_000_000
    assert sizes[-1] == 3_000_002
    for name in manifest.files:
        store.delete(manifest.prefix + name)
    assert fetch(store, manifest, tmp_path) == folder


def test_a_damaged_file_is_refused_and_nothing_stays(tmp_path):
    store = MemoryStore()
    manifest = publish(store, {"config.json": b"{}"})
    store.put(manifest.prefix + "config.json", b"{ }")
    with pytest.raises(JobFailed, match=r"config.json of model mdl_1.* damaged"):
        fetch(store, manifest, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_that_is_stopped_leaves_nothing(tmp_path):
    store = MemoryStore()
    manifest = publish(store, {"config.json": b"{}"})

    def stop(fetched):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(store, manifest, tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../b"])
def test_file_names_stay_inside_the_folder(tmp_path, name):
    store = MemoryStore()
    manifest = publish(store, {name: b"x"})
    with pytest.raises(JobFailed, match="leaves the model's folder"):
        fetch(store, manifest, tmp_path / "cache")


def test_an_unknown_model_is_not_found():
    with pytest.raises(NotFound, match="no model mdl_"):
        read_manifest(MemoryStore(), MODEL)


def test_only_deployed_models_stay_in_the_cache(tmp_path):
    for name in ("mdl_a", "mdl_b"):
        (tmp_path / name).mkdir()
    prune(tmp_path, {"mdl_b"})
    assert [folder.name for folder in tmp_path.iterdir()] == ["mdl_b"]
    prune(tmp_path / "missing", ())
