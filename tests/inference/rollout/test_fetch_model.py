"""What a plain vLLM pod does before it starts."""

import hashlib
import sys
from pathlib import Path

import pytest

from textmill.contracts.runs import Lineage, MergeCheck, ModelManifest, TrainingSummary
from textmill.errors import JobFailed, NotFound
from textmill.store import MemoryStore, S3Store
from textmill_inference.rollout import fetch_model as module
from textmill_inference.rollout.fetch_model import fetch_model

MODEL = "mdl_" + "1" * 32


def publish(store: MemoryStore | S3Store, model_id: str, weights: bytes, damaged: bool = False) -> None:
    prefix = f"models/{model_id}/attempt-1/"
    store.put(prefix + "model.safetensors", weights + (b"rot" if damaged else b""))
    training = TrainingSummary(
        steps=1, epochs=1, first_loss=1, final_loss=1, eval_loss_before=None, eval_loss_after=None, tokens=1,
        tokens_per_s=1, seconds=1, resumed_from_step=0, device="cpu",
    )  # fmt: skip
    manifest = ModelManifest(
        model_id=model_id, name="m", prefix=prefix, files={"model.safetensors": hashlib.sha256(weights).hexdigest()},
        adapter_prefix="", metrics_key="", merge=MergeCheck(mean_kl=0, top1_agreement=1, tokens=1), training=training,
        lineage=Lineage(run_id="r", dataset_id="d", corpus_id="c", document_ids=(), base_model="b", base_sha256="0"),
    )  # fmt: skip
    store.put(f"models/{model_id}/manifest.json", manifest.to_json())


def test_current_leads_to_the_model_also_after_a_restart(tmp_path: Path) -> None:
    store, other = MemoryStore(), "mdl_" + "2" * 32
    publish(store, MODEL, b"one")
    publish(store, other, b"two")
    for _ in range(2):
        fetch_model(store, MODEL, tmp_path)
        assert (tmp_path / "current" / "model.safetensors").read_bytes() == b"one"
    fetch_model(store, other, tmp_path)
    assert (tmp_path / "current" / "model.safetensors").read_bytes() == b"two"


def test_a_damaged_or_unknown_model_starts_no_engine(tmp_path: Path) -> None:
    store = MemoryStore()
    publish(store, MODEL, b"one", damaged=True)
    with pytest.raises(JobFailed, match="published was"):
        fetch_model(store, MODEL, tmp_path)
    with pytest.raises(NotFound):
        fetch_model(store, "mdl_" + "9" * 32, tmp_path)
    assert not (tmp_path / "current").exists()


def test_the_command_reads_the_store_of_the_settings(
    s3_store: S3Store, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(s3_store, MODEL, b"one")
    monkeypatch.setattr(sys, "argv", ["fetch_model", MODEL, str(tmp_path)])
    monkeypatch.setenv("TEXTMILL_STORE_URL", s3_url)
    monkeypatch.setenv("TEXTMILL_STORE_BUCKET", s3_store._bucket)
    monkeypatch.setenv("TEXTMILL_STORE_SECRET_KEY", "textmill-local")
    assert module.main() == 0
    assert (tmp_path / "current" / "model.safetensors").read_bytes() == b"one"
    monkeypatch.setattr(sys, "argv", ["fetch_model", "mdl_" + "9" * 32, str(tmp_path)])
    assert module.main() == 1
    assert "no model mdl_9999" in capsys.readouterr().err
