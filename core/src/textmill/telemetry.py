"""Structured logs and the metrics that all services share. Labels never hold ids, log lines never private text."""

import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from textmill import tracing

HTTP_REQUESTS = Counter("textmill_http_requests_total", "HTTP requests answered", ["route", "method", "status"])
HTTP_SECONDS = Histogram("textmill_http_request_seconds", "Time to the end of the answer", ["route", "method"])
JOBS_FINISHED = Counter("textmill_jobs_finished_total", "Jobs ended here, by state", ["kind", "state"])
JOB_ATTEMPTS = Counter("textmill_job_attempts_total", "Attempts ended here, by outcome", ["kind", "outcome"])
JOB_SECONDS = Histogram(
    "textmill_job_attempt_seconds",
    "Length of an attempt",
    ["kind"],
    buckets=(0.1, 1, 5, 15, 60, 300, 1_800, 7_200, 43_200),
)
JOBS_OPEN = Gauge("textmill_jobs_open", "Jobs that wait or run, at the last look", ["kind"])
JOBS_RUNNING = Gauge("textmill_jobs_running", "Attempts at work in this process", ["kind"])
JOBS_OLDEST_SECONDS = Gauge("textmill_jobs_oldest_open_seconds", "Age of the oldest open job, 0 for none", ["kind"])
DEAD_LETTERS = Counter(
    "textmill_dead_letters_total", "Jobs and messages sent to the dead-letter topic", ["kind", "reason"]
)
RINGS_FAILED = Counter(
    "textmill_job_rings_failed_total", "Wake-ups the broker didn't take; recovery makes up for them", ["kind"]
)

_ENDS = ("succeeded", "failed", "cancelled")
_OUTCOMES = (*_ENDS, "retry", "drained", "dependency_down", "lease_lost", "lost_commit")


def begin_at_zero(kinds: Iterable[str]) -> None:
    """A series that begins with its first event hides that one from ``increase()``, so each begins before it."""
    for kind in kinds:
        JOBS_RUNNING.labels(kind)
        JOB_SECONDS.labels(kind)
        for state in _ENDS:
            JOBS_FINISHED.labels(kind, state)
        for outcome in _OUTCOMES:
            JOB_ATTEMPTS.labels(kind, outcome)


_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and whatever was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if trace_id := tracing.trace_id():
            line["trace_id"] = trace_id
        line.update({k: v for k, v in vars(record).items() if k not in _PLAIN})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str) -> None:
    """Send all logs to stderr as JSON lines. Quiets libraries whose every request is a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("kafka", "urllib3", "aiohttp.access", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
