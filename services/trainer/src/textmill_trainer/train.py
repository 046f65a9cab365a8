"""The training process: ``python -m textmill_trainer.train FOLDER``. Prepares, trains, merges, checks.

Reads and writes one ``WorkFolder`` and knows neither store nor bus. It dies with its parent. SIGTERM makes it
checkpoint and exit with ``EXIT_INTERRUPTED``.
"""

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from textmill.contracts.jobs import Progress
from textmill.contracts.runs import EvalMetrics, StepMetrics
from textmill.errors import TextmillError
from textmill_trainer.workfolder import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    TrainError,
    TrainResult,
    TrainSpec,
    WorkFolder,
)

_PR_SET_PDEATHSIG = 1
_CHECKED_RECORDS = 64
"""Records that the merged model is compared on: minutes on a CPU would be too many, and tokens are what counts."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parent", type=int, default=None, help="exit when this process is not, or no longer, ours")
    arguments = parser.parse_args()
    folder = WorkFolder(arguments.folder)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if arguments.parent is not None and not die_with(arguments.parent):
        return EXIT_INTERRUPTED
    try:
        return run(folder, stop)
    except TextmillError as exc:
        folder.write(folder.error, TrainError(message=str(exc), retryable=exc.retryable))
    except Exception as exc:
        traceback.print_exc()
        folder.write(folder.error, TrainError(message=f"{type(exc).__name__}: {exc}", retryable=False))
    return EXIT_FAILED


def die_with(parent: int) -> bool:
    """Have the kernel send SIGTERM when the parent dies (Linux). False if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have died before the call: then we have another parent by now.
    return os.getppid() == parent


def run(folder: WorkFolder, stop: threading.Event) -> int:
    """All stages, in order. Raises ``TextmillError`` for what the owner can mend."""
    spec = TrainSpec.model_validate_json(folder.spec.read_bytes())
    _say(folder, "loading")
    from textmill_trainer.loop import Interrupted, LoopSettings, train
    from textmill_trainer.merge import check_merge, merge
    from textmill_trainer.metrics import summarize
    from textmill_trainer.model import (
        LoraSettings,
        add_lora,
        base_sha256,
        choose_residence,
        dequantize_in_place,
        describe_device,
        detect_device,
        fetch_base,
        load_nf4,
        load_tokenizer,
    )
    from textmill_trainer.prepare import encode_all, read_records

    logging.getLogger("transformers").setLevel(logging.ERROR)
    job, device = spec.job, detect_device()
    base = fetch_base(spec.base_model)
    tokenizer = load_tokenizer(base)
    examples = encode_all(read_records(folder.records("train")), tokenizer, job.max_tokens)
    eval_file = folder.records("eval")
    eval_examples = encode_all(read_records(eval_file), tokenizer, job.max_tokens) if eval_file.exists() else []

    core = load_nf4(base, device)
    if choose_residence(core, spec.dequantized_budget_bytes) == "dequantized":
        dequantize_in_place(core)
    model = add_lora(core, LoraSettings(job.rank, job.alpha, job.dropout), job.seed)
    settings = LoopSettings(
        epochs=job.epochs,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        warmup_ratio=job.warmup_ratio,
        evaluations=job.evaluations,
        checkpoints=job.checkpoints,
        seed=job.seed,
        max_padded_tokens=spec.max_padded_tokens,
        max_steps=job.max_steps,
    )

    def report(metric: StepMetrics | EvalMetrics, total_steps: int) -> None:
        if isinstance(metric, StepMetrics):
            _say(folder, "training", metric.step, total_steps, "steps", loss=metric.loss, epoch=metric.epoch,
                 learning_rate=metric.learning_rate, tokens_per_s=metric.tokens_per_s)  # fmt: skip

    try:
        resumed_from = train(model, examples, eval_examples, settings, folder.root, report, stop.is_set)
    except Interrupted:
        return EXIT_INTERRUPTED
    _say(folder, "merging")
    model.save_pretrained(str(folder.adapter))
    merge(model, base, folder.merged)
    _say(folder, "checking the merged model")
    checked = check_merge(model, folder.merged, (eval_examples or examples)[:_CHECKED_RECORDS], spec.max_padded_tokens)
    result = TrainResult(
        training=summarize(folder.metrics, resumed_from, describe_device(device)),
        merge=checked,
        base_sha256=base_sha256(base),
    )
    folder.write(folder.result, result)
    return EXIT_DONE


def _say(
    folder: WorkFolder, stage: str, done: float = 0, total: float | None = None, unit: str = "", **figures: float
) -> None:
    folder.write(folder.progress, Progress(stage=stage, done=done, total=total, unit=unit, figures=figures))


if __name__ == "__main__":
    sys.exit(main())
