"""The run as Prometheus sees it. One process trains one run at a time, so there are no labels."""

from prometheus_client import Counter, Gauge

from textmill.contracts.runs import EvalMetrics, StepMetrics

LOSS = Gauge("textmill_train_loss_nats", "Loss of the last step, per supervised token")
EVAL_LOSS = Gauge("textmill_train_eval_loss_nats", "Loss on the eval split, per supervised token")
LEARNING_RATE = Gauge("textmill_train_learning_rate", "Learning rate of the last step")
GRADIENT_NORM = Gauge("textmill_train_gradient_norm", "Gradient norm of the last step, before clipping")
TOKENS_PER_S = Gauge("textmill_train_tokens_per_second", "Tokens per second of the last step, padding not counted")
STEP = Gauge("textmill_train_step", "Steps done by the current run")
TOKENS = Counter("textmill_train_tokens_total", "Tokens trained on here, padding not counted")
CHECKPOINTS = Counter("textmill_train_checkpoints_total", "Checkpoints put in the store")


def observe(metric: StepMetrics | EvalMetrics) -> None:
    if isinstance(metric, EvalMetrics):
        EVAL_LOSS.set(metric.eval_loss)
        return
    LOSS.set(metric.loss)
    LEARNING_RATE.set(metric.learning_rate)
    GRADIENT_NORM.set(metric.gradient_norm)
    TOKENS_PER_S.set(metric.tokens_per_s)
    STEP.set(metric.step)
    TOKENS.inc(metric.tokens)
