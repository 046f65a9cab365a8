"""The gateway's metrics. Labels are routes, model names and statuses, never ids."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REQUESTS = Counter("textmill_gateway_requests_total", "Requests answered", ["route", "model", "status"])
IN_FLIGHT = Gauge("textmill_gateway_requests_in_flight", "Requests being answered", ["model"])
RETRIES = Counter("textmill_gateway_retries_total", "Requests sent again before their first byte", ["model"])
BROKEN_STREAMS = Counter("textmill_gateway_broken_streams_total", "Streams that the engine broke off", ["model"])
REQUEST_SECONDS = Histogram(
    "textmill_gateway_request_seconds", "Time to the end of the answer", ["route", "model"], buckets=_SECONDS
)
TTFT_SECONDS = Histogram(
    "textmill_gateway_time_to_first_token_seconds", "Time to a stream's first bytes", ["model"], buckets=_SECONDS
)
TOKENS = Counter("textmill_gateway_tokens_total", "Tokens, where the answer has its usage in it", ["model", "kind"])
