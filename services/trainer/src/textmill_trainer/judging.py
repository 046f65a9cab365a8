"""What evaluation adds to a run: what is measured, general prompts and their replay, and the verdict at the end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.contracts.datasets import Record
from textmill.contracts.runs import EvalMetrics
from textmill.contracts.verdict import TrainVerdict
from textmill.errors import JobFailed
from textmill_trainer.checkpoint import checkpoints
from textmill_trainer.evaluator import Evaluator, objective_evaluator, supervised_evaluator
from textmill_trainer.forgetting import (
    MEASURED_TOKENS,
    Forgetting,
    answer,
    is_replay,
    keep_examples,
    read_prompts,
    replay_examples,
)
from textmill_trainer.history import REPLAY_FILE
from textmill_trainer.loop import plain_model
from textmill_trainer.metrics import parse_metrics
from textmill_trainer.prepare import read_records
from textmill_trainer.supervised import Supervised
from textmill_trainer.verdict import judge

if TYPE_CHECKING:
    from textmill_trainer.stages import Run

_SAMPLED_TEXTS = 8
"""Of a split of raw text, each as long as ``max_tokens``."""
_SAMPLED_PAIRS = 32


def mix_replay(run: "Run") -> None:
    """Add general examples to what is trained on, where the job asks for a share of them.

    They are made once a run: a resumed one takes them from its checkpoint, since another machine might answer
    otherwise, and then it would be another run.
    """
    share = run.job.replay_share
    if not share:
        return
    if run.job.objective == "dpo":
        raise JobFailed("replay_share mixes general answers into training, and dpo trains on pairs: set it to 0")
    prompts = read_prompts(_more_prompts(run)).replayed
    kept = run.folder.root / REPLAY_FILE
    saved = checkpoints(run.folder.checkpoints)
    if saved and (saved[-1] / REPLAY_FILE).exists():
        shutil.copyfile(saved[-1] / REPLAY_FILE, kept)
    run.examples = run.examples + keep_examples(
        kept,
        lambda: replay_examples(run.model, run.tokenizer, prompts, len(run.examples), share),
    )


def evaluation(run: "Run") -> Callable[[int, float], EvalMetrics] | None:
    """What the loop calls to evaluate. Called while the model still is its base. None if no evaluation is wanted."""
    if not run.job.evaluations:
        return None
    run.evaluator = _evaluator(run)
    return run.evaluator


def conclude(run: "Run") -> TrainVerdict:
    """Judge the run by what was measured on the way, and write the report "verdict"."""
    trained_on = run.pairs or run.examples
    replayed = sum(is_replay(example.record_id) for example in run.examples)
    verdict = judge(
        list(parse_metrics(run.folder.metrics.read_bytes())),
        run.trained.best_step,
        records=len(trained_on) - replayed,
        replayed=replayed,
        sampled=run.evaluator.sampled if run.evaluator else None,
    )
    run.folder.write(run.folder.report("verdict"), verdict)
    return verdict


def _evaluator(run: "Run") -> "Evaluator[Any]":
    core, forgetting = plain_model(run.model), _forgetting(run)
    if run.job.objective == "supervised":
        records = (_records(run, "train"), _records(run, "eval"), _records(run, "heldout"))
        return supervised_evaluator(core, run.tokenizer, records, run.job.max_tokens, forgetting)
    if run.job.objective == "dpo":
        return objective_evaluator(
            core, run.preference, run.pairs, run.eval_pairs, lambda p: p.document_id, _SAMPLED_PAIRS, forgetting
        )
    return objective_evaluator(
        core, Supervised(), run.examples, run.eval_examples, lambda e: e.document_id, _SAMPLED_TEXTS, forgetting
    )


def _forgetting(run: "Run") -> Forgetting:
    prompts = read_prompts(_more_prompts(run)).measured
    general = answer(run.model, run.tokenizer, prompts, MEASURED_TOKENS)
    return Forgetting(run.model, general, run.job.forgetting_budget)


def _more_prompts(run: "Run") -> Path | None:
    return Path(run.spec.general_prompts) if run.spec.general_prompts else None


def _records(run: "Run", split: str) -> list[Record]:
    path = run.folder.records(split)
    return read_records(path) if path.exists() else []
