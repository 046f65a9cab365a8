"""The engines' metrics. Labels are model names."""

from prometheus_client import Counter, Gauge, Histogram

ENGINE_READY = Gauge("textmill_engine_ready", "1 while the engine's model answers", ["model"])
ENGINE_PARITY_TOP1 = Gauge(
    "textmill_engine_parity_top1_ratio",
    "Share of tokens at which the engine agrees with the published model, ties counted; of the last model measured",
    ["model"],
)
ENGINE_PARITY_DIFFERENCE = Gauge(
    "textmill_engine_parity_logprob_difference_nats", "Mean difference of log-probabilities, as above", ["model"]
)
ENGINE_RESTARTS = Counter("textmill_engine_restarts_total", "Starts of an engine after its first", ["model"])
ENGINE_START_SECONDS = Histogram(
    "textmill_engine_start_seconds", "From the start of the process to its first token", ["model"],
    buckets=(5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600),
)  # fmt: skip
