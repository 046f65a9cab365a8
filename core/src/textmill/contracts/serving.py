"""What inference writes: deployments, evaluations, load-test reports. Times in milliseconds carry ``_ms``."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.gates import ParityCheck


class Deployment(StoredContract):
    """A name that clients ask for, and the model version that answers to it.

    ``parity`` is what the engine was held to before it answered; None for a model published without a probe.
    """

    name: str
    deployment_id: str
    model_id: str
    parity: ParityCheck | None = None
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


class TaskScore(Contract):
    """A benchmark task's metric, as lm-eval names both, of the model before and after."""

    task: str
    metric: str
    before: float
    after: float


class EvaluationReport(StoredContract):
    """The same held-out questions to the base model and to the tuned one, and benchmark tasks if asked for."""

    evaluation_id: str
    dataset_id: str
    before: ModelScore
    after: ModelScore
    tasks: Sequence[TaskScore] = ()
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
