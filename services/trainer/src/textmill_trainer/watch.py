"""The run as Prometheus sees it. One process trains one run at a time, so there are no labels."""

import math
from pathlib import Path

from prometheus_client import Counter, Gauge

from textmill.contracts.anomalies import AnomalyReport
from textmill.contracts.runs import EvalMetrics, StepMetrics

LOSS = Gauge("textmill_train_loss_nats", "Loss of the last step, per supervised token")
EVAL_LOSS = Gauge("textmill_train_eval_loss_nats", "Loss on the eval split, per supervised token")
HELDOUT_LOSS = Gauge("textmill_train_heldout_loss_nats", "Loss on trained facts in wordings not trained on")
KL_TO_BASE = Gauge("textmill_train_kl_to_base_nats", "KL to the base on general prompts, per token")
LEARNING_RATE = Gauge("textmill_train_learning_rate", "Learning rate of the last step")
GRADIENT_NORM = Gauge("textmill_train_gradient_norm", "Gradient norm of the last step, before clipping")
TOKENS_PER_S = Gauge("textmill_train_tokens_per_second", "Tokens per second of the last step, padding not counted")
MEMORY = Gauge("textmill_train_memory_bytes", "Most memory held so far, on the GPU or by the training process")
SUSPECTS = Gauge("textmill_train_suspects", "Records that stand out by their loss and were not cleared")
STEP = Gauge("textmill_train_step", "Steps done by the current run")
TOKENS = Counter("textmill_train_tokens_total", "Tokens trained on here, padding not counted")
CHECKPOINTS = Counter("textmill_train_checkpoints_total", "Checkpoints put in the store")

_GAUGES = (LOSS, EVAL_LOSS, HELDOUT_LOSS, KL_TO_BASE, LEARNING_RATE, GRADIENT_NORM, TOKENS_PER_S, MEMORY, SUSPECTS)


def begin() -> None:
    """Forget the run before: what this one doesn't measure must not show that one's figures."""
    for gauge in _GAUGES:
        gauge.set(math.nan)
    STEP.set(0)


def observe(metric: StepMetrics | EvalMetrics, trained_here: bool = True) -> None:
    """``trained_here`` is false for steps of an earlier attempt, which a resumed run's metrics hold too."""
    if isinstance(metric, EvalMetrics):
        _observe_evaluation(metric)
        return
    LOSS.set(metric.loss)
    LEARNING_RATE.set(metric.learning_rate)
    GRADIENT_NORM.set(metric.gradient_norm)
    TOKENS_PER_S.set(metric.tokens_per_s)
    MEMORY.set(metric.memory_bytes)
    STEP.set(metric.step)
    if trained_here:
        TOKENS.inc(metric.tokens)


def observe_report(path: Path) -> None:
    """A report that was just written; most are not for Prometheus."""
    if path.name == "anomalies.json":
        report = AnomalyReport.model_validate_json(path.read_bytes())
        SUSPECTS.set(sum(s.verdict != "cleared" for s in report.suspects))


def _observe_evaluation(metric: EvalMetrics) -> None:
    for gauge, value in (
        (EVAL_LOSS, metric.eval_loss),
        (HELDOUT_LOSS, metric.heldout_loss),
        (KL_TO_BASE, metric.kl_to_base),
    ):
        if value is not None:
            gauge.set(value)
