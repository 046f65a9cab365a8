"""The stages of a training run, in order: each reads and fills the ``Run``. Raises ``TextmillError`` for what the owner
can mend. Knows neither store nor bus.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from textmill.contracts.anomalies import AnomalyCounts
from textmill.contracts.jobs import Progress, TrainJob
from textmill.contracts.masking import MaskingSummary
from textmill.contracts.packing import PackingReport
from textmill.contracts.runs import EvalMetrics
from textmill.contracts.trainforecast import TrainForecast
from textmill.contracts.verdict import TrainVerdict
from textmill.weights import weights_sha256
from textmill_trainer import loop
from textmill_trainer.beforehand import Chosen, choose, look_back, rehearse
from textmill_trainer.checkpoint import trained_weights
from textmill_trainer.distributed import ALONE, Ranks, put_together, shard_frozen
from textmill_trainer.evaluator import Evaluator
from textmill_trainer.gate import compared_examples, pass_gate, short_form
from textmill_trainer.judging import conclude, evaluation, mix_replay
from textmill_trainer.loop import LoopSettings, Trained
from textmill_trainer.losswatch import LossWatch
from textmill_trainer.masking import encode_with_proof
from textmill_trainer.metrics import summarize
from textmill_trainer.model import (
    LoraSettings,
    describe_device,
    detect_device,
    fetch_base,
    load_model,
    load_tokenizer,
)
from textmill_trainer.objective import Objective
from textmill_trainer.objectives import encode_source, objective_of
from textmill_trainer.observing import Observer, StepSeen
from textmill_trainer.packing_choice import choose_packing
from textmill_trainer.pairs import PairExample
from textmill_trainer.parity import write_probe
from textmill_trainer.preference import Preference
from textmill_trainer.prepare import Example
from textmill_trainer.replay import Weights
from textmill_trainer.suspecting import leave_out, settle_suspects, watch_losses
from textmill_trainer.tensorboard import TensorBoardObserver, tensorboard_is_installed
from textmill_trainer.workfolder import TrainResult, TrainSpec, WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class Run:
    """What the stages hand on. A field is there once the stage that fills it is done."""

    folder: WorkFolder
    spec: TrainSpec
    stopping: Callable[[], bool]
    ranks: Ranks = ALONE
    spread: bool = False
    device: torch.device = field(default_factory=detect_device)
    base: Path = field(init=False)
    tokenizer: "PreTrainedTokenizerFast" = field(init=False)
    examples: list[Example] = field(init=False)
    eval_examples: list[Example] = field(init=False)
    masking: MaskingSummary | None = None
    pairs: list[PairExample] = field(default_factory=list)
    eval_pairs: list[PairExample] = field(default_factory=list)
    preference: Preference = field(init=False)
    chosen: Chosen = field(init=False)
    lora: LoraSettings = field(init=False)
    settings: LoopSettings = field(init=False)
    packing: PackingReport = field(init=False)
    model: PeftModel | PreTrainedModel = field(init=False)
    objective: Objective[Any] = field(init=False)
    learned: Sequence[Any] = field(init=False)
    forecast: TrainForecast = field(init=False)
    observers: list[Observer] = field(default_factory=list)
    evaluator: Evaluator[Any] | None = None
    watch: LossWatch | None = None
    start: Weights = field(default_factory=dict)
    trained: Trained = field(init=False)
    anomalies: AnomalyCounts | None = None
    verdict: TrainVerdict = field(init=False)
    result: TrainResult = field(init=False)

    @property
    def job(self) -> TrainJob:
        return self.spec.job


def run_stages(run: Run) -> None:
    """All of them. Raises ``Interrupted`` when asked to stop while training."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    say(run.folder, "loading")
    leave_out(run)
    prepare(run)
    resolve(run)
    load(run)
    mix_replay(run)
    lay_out(run)
    say(run.folder, "probing a step")
    run.objective, run.learned = objective_of(run)
    run.forecast = rehearse(run, run.chosen)
    watch_losses(run)
    spread(run)
    train(run)
    if not run.ranks.main:
        return
    go_on_alone(run)
    settle_suspects(run)
    run.verdict = conclude(run)
    say(run.folder, "merging")
    publish(run)


def prepare(run: Run) -> None:
    """Tokenizer and examples."""
    run.base = fetch_base(run.spec.base_model)
    run.tokenizer = load_tokenizer(run.base, chat=run.job.objective != "pretrain")
    if run.job.objective != "supervised":
        encode_source(run)
        return
    examples, run.masking = encode_with_proof(run.folder, run.tokenizer, run.job.max_tokens)
    run.examples, run.eval_examples = examples["train"], examples.get("eval", [])


def resolve(run: Run) -> None:
    """Settings of the loop and the adapter, from the job's options."""
    job = run.job
    run.chosen = choose(run)
    run.lora = LoraSettings(run.chosen.rank, job.alpha, job.dropout, job.adapter)
    run.settings = LoopSettings(
        epochs=job.epochs,
        batch_size=job.batch_size,
        learning_rate=run.chosen.learning_rate,
        warmup_ratio=job.warmup_ratio,
        evaluations=job.evaluations,
        checkpoints=job.checkpoints,
        seed=job.seed,
        max_padded_tokens=run.chosen.setup.max_padded_tokens,
        max_steps=job.max_steps,
        step_tokens=job.step_tokens,
        early_stopping=job.early_stopping,
        keep=job.keep,
    )


def load(run: Run) -> None:
    """The base, with what is trained."""
    run.model = load_model(
        run.base,
        run.job.method,
        run.device,
        lora=run.lora,
        seed=run.job.seed,
        dequantized_budget_bytes=run.spec.dequantized_budget_bytes if run.chosen.setup.dequantized else 0,
        gradient_checkpointing=run.chosen.setup.gradient_checkpointing,
    )


def lay_out(run: Run) -> None:
    """Packed rows or padded ones."""
    rows = [(p.chosen, p.rejected) for p in run.pairs] if run.job.objective == "dpo" else [(e,) for e in run.examples]
    # Dropout draws anew for each record, so that what several begin with isn't the same for all.
    share = run.job.dropout == 0
    report = choose_packing(run.job.packing, loop.plain_model(run.model), rows, run.settings, share=share)
    run.settings = replace(run.settings, packed=report.packed)
    run.packing = report
    run.folder.write(run.folder.report("packing"), report)


def train(run: Run) -> None:
    """The loop. Raises ``Interrupted``."""
    run.observers.append(ProgressObserver(run.folder))
    with ExitStack() as closing_after:
        if tensorboard_is_installed():
            run.observers.append(closing_after.enter_context(closing(TensorBoardObserver(run.folder))))
        run.trained = loop.train(
            run.model,
            run.objective,
            run.learned,
            run.settings,
            run.folder.root,
            evaluate=evaluation(run),
            observers=run.observers,
            stopping=run.stopping,
            ranks=run.ranks,
        )


def spread(run: Run) -> None:
    """Over the processes of the run, which from here on must agree in everything that they do together."""
    run.settings = run.ranks.of_main(run.settings)
    run.learned = run.ranks.of_main(run.learned)
    run.spread = shard_frozen(loop.plain_model(run.model), run.ranks)


def go_on_alone(run: Run) -> None:
    """What follows training is done by the main process, with a whole model."""
    if not run.spread:
        return
    trained, weights = run.model, {n: p.detach().clone() for n, p in trained_weights(run.model).items()}
    load(run)
    put_together(loop.plain_model(trained), loop.plain_model(run.model))
    run.model = trained
    with torch.no_grad():
        for name, weight in trained_weights(trained).items():
            weight.copy_(weights[name])


def publish(run: Run) -> None:
    """Adapter and merged model, checked, and the result."""
    if isinstance(run.model, PeftModel):
        run.model.save_pretrained(str(run.folder.adapter))
    compared = compared_examples(run.eval_examples, run.examples)
    merged, published = pass_gate(
        run.model,
        run.base,
        run.folder.merged,
        compared,
        method=run.job.method,
        max_kl=run.job.merge_max_kl,
        max_padded_tokens=run.spec.max_padded_tokens,
    )
    run.folder.write(run.folder.report("merge"), merged)
    write_probe(published, run.tokenizer, run.folder, run.job.objective, compared)
    run.result = TrainResult(
        training=look_back(
            run,
            summarize(
                run.folder.metrics,
                run.trained.resumed_from,
                describe_device(run.device),
                run.trained.best_step,
                run.trained.stopped_early,
            ),
        ),
        merge=short_form(merged),
        base_sha256=weights_sha256(run.base),
        masking=run.masking,
        verdict=run.verdict.note,
        anomalies=run.anomalies,
    )
    run.folder.write(run.folder.result, run.result)


@dataclass(frozen=True)
class ProgressObserver:
    """Shows the job's progress."""

    folder: WorkFolder

    def step(self, seen: StepSeen) -> None:
        metrics = seen.metrics
        say(self.folder, "training", metrics.step, seen.total_steps, "steps", loss=metrics.loss, epoch=metrics.epoch,
            learning_rate=metrics.learning_rate, tokens_per_s=metrics.tokens_per_s)  # fmt: skip

    def evaluated(self, metrics: EvalMetrics) -> None:
        pass


def say(
    folder: WorkFolder, stage: str, done: float = 0, total: float | None = None, unit: str = "", **figures: float
) -> None:
    folder.write(folder.progress, Progress(stage=stage, done=done, total=total, unit=unit, figures=figures))
