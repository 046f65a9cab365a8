"""The real training process for each objective that isn't supervised, and with all weights trained; and resumed."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.test_sources import CORPUS, put_corpus
from tests.trainer.test_worker import DATASET, context_of, put_dataset

from textmill.contracts.jobs import TrainJob
from textmill.contracts.preferences import PreferenceReport
from textmill.contracts.runs import ModelManifest
from textmill.contracts.samples import SamplesReport
from textmill.store import MemoryStore
from textmill_trainer.preferences import keep_pairs, parse_pairs
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.sources import read_source
from textmill_trainer.worker import TRAIN_COMMAND, TrainHandler
from textmill_trainer.workfolder import EXIT_DONE, EXIT_INTERRUPTED, TrainSpec, WorkFolder

pytestmark = pytest.mark.slow
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "rank": 4, "alpha": 8, "evaluations": 2}
_STOPPED_IN_ITS_EIGHTH_STEP = """
import os, runpy, signal
from textmill_trainer import loop
def seed(number, done, really=loop.seed_step):
    if done == 7:
        os.kill(os.getpid(), signal.SIGTERM)
    really(number, done)
loop.seed_step = seed
runpy.run_module("textmill_trainer.train", run_name="__main__", alter_sys=True)
"""
"""The training process, which gets its SIGTERM there: however fast it is, that comes before its end."""


def put_pairs(store: MemoryStore) -> str:
    rows = [f'{{"prompt": "What is {n}?", "chosen": "It is {n}.", "rejected": "No idea."}}' for n in range(10)]
    return keep_pairs(store, parse_pairs("\n".join(rows).encode()))[0].preferences_id


def ran(store: MemoryStore, base: Path, root: Path, job: TrainJob) -> ModelManifest:
    settings = TrainerSettings(base_model=str(base), work_folder=root / "work")
    return ModelManifest.model_validate(TrainHandler(settings)(job, context_of(store)).manifest)


def test_raw_text(tiny_base: Path, tmp_path: Path) -> None:
    """From a base that was never taught to converse."""
    base = tmp_path / "tiny-base"
    shutil.copytree(tiny_base, base, ignore=shutil.ignore_patterns("*.jinja"))
    store = MemoryStore()
    put_corpus(store, [f"The superior man number {n} strengthens himself without cease. " * 4 for n in range(6)])
    job = TrainJob(objective="pretrain", corpus_id=CORPUS, max_tokens=32, sample_prompts=("The superior",), **OPTIONS)
    manifest = ran(store, base, tmp_path, job)
    assert manifest.lineage.corpus_id == CORPUS
    assert (manifest.lineage.dataset_id, len(manifest.lineage.document_ids)) == (None, 6)
    assert manifest.training.eval_loss_after is not None
    assert manifest.training.eval_loss_after < (manifest.training.eval_loss_before or 0)
    card = store.get(manifest.prefix + "README.md").decode()
    assert "Continued pretraining" in card
    assert "None" not in card
    samples = SamplesReport.model_validate_json(store.get(f"runs/{job.run_id}/attempt-1/reports/samples.json")).samples
    assert len({s.step for s in samples}) == 3


def test_preferences(tiny_base: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    preferences_id = put_pairs(store)
    job = TrainJob(objective="dpo", preferences_id=preferences_id, eval_share=0.2, **OPTIONS)
    manifest = ran(store, tiny_base, tmp_path, job)
    assert manifest.lineage.preferences_id == preferences_id
    assert manifest.masking is not None
    assert manifest.training.first_loss == pytest.approx(0.693, abs=0.02)
    assert manifest.training.final_loss < manifest.training.first_loss
    report = store.get(f"runs/{job.run_id}/attempt-1/reports/preference.json")
    figures = PreferenceReport.model_validate_json(report).figures
    assert [f.split for f in figures] == ["eval", "train", "eval", "train", "eval"]


def test_all_weights(tiny_base: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    put_dataset(store, tmp_path, train=8, evaluation=2)
    job = TrainJob(dataset_id=DATASET, method="full", **{**OPTIONS, "learning_rate": 1e-3})
    manifest = ran(store, tiny_base, tmp_path, job)
    assert manifest.merge.mean_kl < 1e-3
    assert manifest.adapter_prefix is None
    assert not list(store.list(f"runs/{job.run_id}/attempt-1/adapter/"))
    assert "all weights in fp32" in store.get(manifest.prefix + "README.md").decode()


def test_preferences_resumed_are_the_run_that_was_not_stopped(tiny_base: Path, tmp_path: Path) -> None:
    """References are asked of the base, which after a resume of a full training is nowhere but on disk."""
    store = MemoryStore()
    job = TrainJob.model_validate(
        {**OPTIONS, "objective": "dpo", "preferences_id": put_pairs(store), "method": "full", "epochs": 12,
         "learning_rate": 1e-3, "checkpoints": 1, "evaluations": 0}
    )  # fmt: skip
    losses = {}
    for name in ("whole", "stopped"):
        folder = WorkFolder(tmp_path / name)
        spec = TrainSpec(job=job, base_model=str(tiny_base), max_padded_tokens=512, dequantized_budget_bytes=1 << 30)
        folder.write(folder.spec, spec)
        read_source(store, job).fetch(folder)
        if name == "stopped":
            command = [sys.executable, "-c", _STOPPED_IN_ITS_EIGHTH_STEP, str(folder.root)]
            assert subprocess.run(command, check=False).returncode == EXIT_INTERRUPTED
            assert len(folder.metrics.read_bytes().splitlines()) == 8
            (folder.root / "references.json").unlink()
        assert subprocess.run([*TRAIN_COMMAND, str(folder.root)], check=False).returncode == EXIT_DONE
        losses[name] = [line.split('"loss":')[1].split(",")[0] for line in folder.metrics.read_text().splitlines()]
    assert losses["whole"] == losses["stopped"]
