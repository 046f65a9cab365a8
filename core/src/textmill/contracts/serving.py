"""What inference writes: deployments, evaluations, load-test reports. Times in milliseconds carry ``_ms``."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now


class Deployment(StoredContract):
    """A name that clients ask for, and the model version that answers to it."""

    name: str
    deployment_id: str
    model_id: str
    created_at: datetime = Field(default_factory=utc_now)


class Answer(Contract):
    """One question put to one model. ``correct`` means that every key fact is in the answer."""

    record_id: str
    question: str
    key_facts: Sequence[str]
    expected: str
    answer: str
    correct: bool


class ModelScore(Contract):
    model: str
    questions: int
    correct: int
    accuracy: float
    answers: Sequence[Answer]


class EvaluationReport(StoredContract):
    """The same held-out questions to the base model and to the tuned one."""

    evaluation_id: str
    dataset_id: str
    before: ModelScore
    after: ModelScore
    created_at: datetime = Field(default_factory=utc_now)


class Percentiles(Contract):
    """Of one quantity in milliseconds. ``p99`` is None below 662 samples: fewer can't support it (MLPerf)."""

    samples: int
    mean: float
    p50: float
    p90: float
    p99: float | None


class LoadLevel(Contract):
    """One concurrency level. TTFT and end-to-end per request, ITL per token after the first."""

    concurrency: int
    requests: int
    succeeded: int
    errors: dict[str, int]
    seconds: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    e2e_ms: Percentiles | None


class LoadtestReport(StoredContract):
    loadtest_id: str
    target: str
    model: str
    levels: Sequence[LoadLevel]
    created_at: datetime = Field(default_factory=utc_now)
