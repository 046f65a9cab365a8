"""Two processes train what one does: the same losses, the same weights, with the frozen ones spread over both."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.distributed_data import SETTINGS, WAYS, examples, load
from tests.trainer.test_train_process import prepared, wait_for
from tests.trainer.test_worker import DATASET, context_of, put_dataset
from transformers import LlamaConfig, LlamaForCausalLM

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import ModelManifest, StepMetrics
from textmill.store import MemoryStore
from textmill_trainer import loop
from textmill_trainer.checkpoint import checkpoints
from textmill_trainer.distributed import ALONE, Ranks, padded_turns
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.supervised import Supervised
from textmill_trainer.worker import TRAIN_COMMAND, TrainHandler
from textmill_trainer.workfolder import EXIT_INTERRUPTED, TrainSpec

SCRIPT = Path(__file__).with_name("distributed_train.py")
ROOT = SCRIPT.parents[2]
VOCABULARY = 256


def torchrun(count: int, *arguments: str) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), str(SCRIPT), *arguments]
    surroundings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, env=surroundings
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few words, since three ways are trained in two processes."""
    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def by_two(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    torchrun(2, str(small_base), str(root), *WAYS)
    return root


@pytest.fixture(scope="module")
def by_one(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    for way in WAYS:
        loop.train(load(small_base, way), Supervised(), examples(), SETTINGS, root / way)
    return root


def steps(folder: Path) -> list[StepMetrics]:
    return [m for m in parse_metrics((folder / "metrics.jsonl").read_bytes()) if isinstance(m, StepMetrics)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder / "checkpoints")[-1] / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "tolerance"), [("lora", 1e-5), ("dequantized", 1e-5), ("nf4", 2e-2)])
def test_two_processes_have_the_losses_of_one(by_one: Path, by_two: Path, way: str, tolerance: float) -> None:
    """NF4 computes in bf16, whose rounding depends on which records share a microbatch."""
    one, two = steps(by_one / way), steps(by_two / way / "rank-0")
    assert len(one) == len(two) == 15
    assert one[-1].loss < one[0].loss - 0.1
    for ours, theirs in zip(one, two, strict=True):
        assert theirs.loss == pytest.approx(ours.loss, rel=tolerance)
        assert theirs.gradient_norm == pytest.approx(ours.gradient_norm, rel=20 * tolerance)
        assert theirs.tokens == ours.tokens


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_both_processes_hold_the_same_adapter_and_half_of_the_rest(small_base: Path, by_two: Path, way: str) -> None:
    first, second = (weights(by_two / way / f"rank-{n}") for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = [json.loads((by_two / way / f"rank-{n}" / "told.json").read_text()) for n in (0, 1)]
    assert told[0]["sharded"]
    assert told[0]["digest"] == told[1]["digest"]
    layers = sum(p.numel() for n, p in load(small_base, way).named_parameters() if "layers" in n and "lora" not in n)
    other = VOCABULARY * 64 + 64
    assert told[0]["local"] == other + layers // 2


@pytest.mark.slow
def test_a_run_can_be_resumed_by_another_number_of_processes(small_base: Path, by_one: Path, tmp_path: Path) -> None:
    """One process is stopped after six steps; two go on."""
    looked = iter([False] * 6 + [True])
    alone = tmp_path / "alone"
    with pytest.raises(loop.Interrupted):
        loop.train(load(small_base, "lora"), Supervised(), examples(), SETTINGS, alone, stopping=lambda: next(looked))
    for rank in (0, 1):
        shutil.copytree(alone, tmp_path / "lora" / f"rank-{rank}")
    torchrun(2, str(small_base), str(tmp_path), "lora")
    found = steps(tmp_path / "lora" / "rank-0")
    assert [s.loss for s in found[:6]] == [s.loss for s in steps(alone)]
    for ours, theirs in zip(steps(by_one / "lora"), found, strict=True):
        assert theirs.loss == pytest.approx(ours.loss, rel=1e-5)


def test_shares_are_even_and_whole() -> None:
    batch = [9, 1, 8, 2, 7, 3, 6]
    shares = Ranks(0, 3).shares(batch, lambda n: n)
    assert sorted(n for share in shares for n in share) == sorted(batch)
    assert max(map(sum, shares)) - min(map(sum, shares)) <= 3
    assert ALONE.shares(batch, lambda n: n) == [batch]


def test_everybody_has_as_many_turns() -> None:
    shares = [["a", "b", "c"], ["d"], []]
    turns = [list(padded_turns(shares, rank)) for rank in range(3)]
    assert turns[0] == [("a", True), ("b", True), ("c", True)]
    assert turns[1] == [("d", True), ("a", False), ("a", False)]
    assert [counts for _, counts in turns[2]] == [False] * 3


@pytest.mark.slow
def test_a_job_in_two_processes_from_records_to_model(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one: reports, metrics, checkpoint, adapter and a merged model that passes its gate."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store = MemoryStore()
    put_dataset(store, tmp_path, train=8, evaluation=2)
    settings = TrainerSettings(base_model=str(tiny_base), work_folder=tmp_path / "work", gpus=2)
    job = TrainJob(dataset_id=DATASET, epochs=2, batch_size=4, learning_rate=1e-2, rank=4, alpha=8)
    manifest = ModelManifest.model_validate(TrainHandler(settings)(job, context_of(store)).manifest)
    assert manifest.training.steps == 4
    assert manifest.merge.mean_kl < 1e-3
    assert {"model.safetensors", "config.json"} <= set(manifest.files)
    prefix = f"runs/{job.run_id}/attempt-1/"
    assert {f"{prefix}record_losses.jsonl", f"{prefix}reports/merge.json", f"{prefix}metrics.jsonl"} <= {
        info.key for info in store.list(prefix)
    }


@pytest.mark.slow
def test_sigterm_stops_all_processes_with_one_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path, tiny_base, epochs=1000)
    spec = TrainSpec.model_validate_json(folder.spec.read_bytes())
    folder.write(folder.spec, spec.model_copy(update={"gpus": 2}))
    process = subprocess.Popen([*TRAIN_COMMAND, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(folder.metrics)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == EXIT_INTERRUPTED
    assert len(checkpoints(folder.checkpoints)) == 1
