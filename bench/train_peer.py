"""One reading of training speed, in a process of its own: our trainer, or TRL's SFTTrainer, on the same records.

    python bench/train_peer.py TASK.json

Prints one line of JSON. Both train SmolLM2-135M with LoRA on all linear layers beside NF4 weights in bf16 arithmetic.
Ours runs the stages of the training process as a job does, with its loss watch, digests, progress and TensorBoard
files. TRL's options are its defaults but for those that the task names and two that its documentation gives for speed:
no gradient checkpointing where memory suffices, and no Liger kernels, which need a GPU. A reading begins behind the
first ``warm`` steps and counts real tokens only: neither tool's padding.
"""

import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RANK, ALPHA, LEARNING_RATE, SEED = 16, 32, 2e-4, 0


@dataclass(frozen=True)
class Task:
    """``records`` is a Parquet file. ``options`` are further ones of ``SFTConfig``; ours takes none. ``environment``
    is the process's, besides."""

    tool: str
    records: str
    batch_size: int
    steps: int
    warm: int
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Reading:
    tool: str
    tokens: int
    seconds: float
    losses: list[float]
    peak_mb: int

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Clock:
    """Real tokens and the time at the end of each step; an observer of our loop."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    def step(self, seen: Any) -> None:
        self.tokens += seen.metrics.tokens
        self.losses.append(seen.metrics.loss)
        self.ends.append((time.perf_counter(), self.tokens))

    def evaluated(self, metrics: Any) -> None:
        pass

    def reading(self, tool: str, warm: int) -> Reading:
        (began, before), (ended, after) = self.ends[warm - 1], self.ends[-1]
        return Reading(tool, round(after - before), ended - began, self.losses, _peak_mb())


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    reading = measure_textmill(task) if task.tool == "textmill" else measure_trl(task)
    print(json.dumps(asdict(reading)))
    return 0


def measure_textmill(task: Task) -> Reading:
    from textmill_trainer import stages

    clock, train = Clock(), stages.train

    def timed(run: Any) -> None:
        run.observers.append(clock)
        train(run)

    run_until_training(task, timed)
    return clock.reading("textmill", task.warm)


class _Reached(Exception):
    """The stage of interest is done; what follows it in a job is not measured."""


def run_until_training(task: Task, instead: Callable[[Any], None]) -> None:
    """All stages of a job up to its training, which is ``instead``; that gets the ``Run``."""
    from textmill_trainer import stages

    def reached(run: Any) -> None:
        instead(run)
        raise _Reached

    train, stages.train = stages.train, reached
    try:
        with tempfile.TemporaryDirectory(prefix="textmill-bench-") as root:
            stages.run_stages(_run(task, Path(root)))
    except _Reached:
        pass
    finally:
        stages.train = train


def _run(task: Task, root: Path) -> Any:
    from textmill.contracts.base import content_id
    from textmill.contracts.jobs import TrainJob
    from textmill_trainer import stages
    from textmill_trainer.settings import TrainerSettings
    from textmill_trainer.workfolder import TrainSpec, WorkFolder

    folder, settings = WorkFolder(root), TrainerSettings()
    shutil.copyfile(task.records, folder.records("train"))
    job = TrainJob(
        dataset_id=content_id("ds", "bench"), epochs=100, max_steps=task.steps, batch_size=task.batch_size,
        learning_rate=LEARNING_RATE, rank=RANK, alpha=ALPHA, evaluations=0, checkpoints=0, seed=SEED,
    )  # fmt: skip
    spec = TrainSpec(
        job=job, base_model=settings.base_model, max_padded_tokens=settings.max_padded_tokens,
        dequantized_budget_bytes=settings.dequantized_budget_mb << 20,
    )  # fmt: skip
    return stages.Run(folder, spec, stopping=lambda: False)


def measure_trl(task: Task) -> Reading:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from textmill_trainer.base_model import default_folder, ensure_base_model

    ends: list[float] = []

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    base = ensure_base_model(default_folder())
    tokenizer = AutoTokenizer.from_pretrained(base)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=quantization)
    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory(prefix="textmill-bench-") as folder:
        options: dict[str, Any] = {
            "output_dir": folder, "max_steps": task.steps, "per_device_train_batch_size": task.batch_size,
            "learning_rate": LEARNING_RATE, "gradient_checkpointing": False, "use_cpu": not torch.cuda.is_available(),
            "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": SEED,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=SFTConfig(**{**options, **task.options}), train_dataset=_dataset(task, tokenizer),
            processing_class=tokenizer, peft_config=adapter, callbacks=[Ends()],
        )  # fmt: skip
        with open("/dev/null", "w") as nowhere:
            sys.stdout, out = nowhere, sys.stdout
            trainer.train()
            sys.stdout = out
    # TRL's own count: what the attention mask lets through, or the length of a row without padding.
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    clock = Clock([(at, entry["num_tokens"]) for at, entry in zip(ends, steps, strict=True)])
    clock.losses = [entry["loss"] for entry in steps]
    return clock.reading("trl", task.warm)


def _dataset(task: Task, tokenizer: Any) -> Any:
    from datasets import Dataset

    from textmill_trainer.prepare import encode_all, read_records

    examples = encode_all(read_records(Path(task.records)), tokenizer, 1_024)
    labels = [
        [token if counts else -100 for token, counts in zip(e.token_ids, e.supervised, strict=True)] for e in examples
    ]
    return Dataset.from_dict({"input_ids": [list(e.token_ids) for e in examples], "labels": labels})


def _peak_mb() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    raise SystemExit(main())
