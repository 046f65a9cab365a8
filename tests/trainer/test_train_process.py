"""The real training process on a tiny model: end to end, interrupted, and orphaned."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.trainer.conftest import make_records, write_records
from tests.trainer.kills import prepare_run, run_and_kill, run_to_end
from tests.trainer.test_worker import DATASET, context_of, put_dataset

from textmill.contracts.gates import MergeReport, ParityProbe
from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import ModelManifest
from textmill.store import MemoryStore
from textmill_trainer.reports import StoredReports
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.worker import TRAIN_COMMAND, TrainHandler
from textmill_trainer.workfolder import EXIT_FAILED, EXIT_INTERRUPTED, TrainSpec, WorkFolder

pytestmark = pytest.mark.slow
JOB = TrainJob(dataset_id=DATASET, epochs=2, batch_size=4, learning_rate=1e-2, rank=4, alpha=8)


def prepared(root: Path, base: Path, **changes: object) -> WorkFolder:
    folder = WorkFolder(root)
    job = JOB.model_copy(update=changes)
    spec = TrainSpec(job=job, base_model=str(base), max_padded_tokens=512, dequantized_budget_bytes=1 << 30)
    folder.write(folder.spec, spec)
    write_records(folder.records("train"), make_records(8))
    return folder


def test_a_job_from_records_to_model(tiny_base: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    put_dataset(store, tmp_path, train=8, evaluation=2)
    settings = TrainerSettings(base_model=str(tiny_base), work_folder=tmp_path / "work")
    manifest = ModelManifest.model_validate(TrainHandler(settings)(JOB, context_of(store)).manifest)
    assert manifest.training.steps == 4
    assert manifest.training.eval_loss_after is not None
    assert manifest.merge.mean_kl < 1e-3
    files = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "parity.json"}
    assert files <= set(manifest.files)
    report = StoredReports(store).report(manifest.lineage.run_id, "merge")
    assert MergeReport.model_validate_json(report).published.mean_kl == manifest.merge.mean_kl
    probe = ParityProbe.model_validate_json(store.get(f"{manifest.prefix}parity.json"))
    assert [message["role"] for message in probe.conversations[0].messages] == ["user"]


def test_sigterm_checkpoints(tiny_base: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny_base, epochs=1000)
    process = subprocess.Popen([*TRAIN_COMMAND, str(tmp_path)])
    wait_for(folder.metrics)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == EXIT_INTERRUPTED
    assert list(folder.checkpoints.glob("step-*"))


def test_killed_anywhere_it_comes_to_the_same_end(tiny_base: Path, tmp_path: Path) -> None:
    """Three kills, one of them inside the writing of a checkpoint: same chain, same bits."""
    straight = run_to_end(prepare_run(tmp_path / "straight", tiny_base, steps=18))
    folder, rng = prepare_run(tmp_path / "cut", tiny_base, steps=18), random.Random(4)
    kills = [run_and_kill(folder, rng, inside_save) for inside_save in (False, True, False)]
    assert any(kill.inside_save for kill in kills), kills
    assert run_to_end(folder) == straight
    assert len(straight.digests) == 18


def test_it_dies_with_its_parent(tiny_base: Path, tmp_path: Path) -> None:
    """The parent starts it as the worker does, and is then killed."""
    folder = prepared(tmp_path, tiny_base, epochs=1000)
    script = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([*{list(TRAIN_COMMAND)!r}, {str(tmp_path)!r}, '--parent', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(folder.metrics)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(1200):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the training process outlived its parent")
    assert list(folder.checkpoints.glob("step-*"))


def test_an_unusable_record_is_named(tiny_base: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny_base, max_tokens=16)
    assert subprocess.run([*TRAIN_COMMAND, str(tmp_path)], check=False).returncode == EXIT_FAILED
    error = folder.read_error()
    assert error is not None
    assert "max_tokens is 16" in error.message
    assert not error.retryable


def wait_for(path: Path) -> None:
    for _ in range(2400):
        if path.exists() and path.read_bytes():
            return
        time.sleep(0.05)
    pytest.fail(f"{path.name} didn't come")
