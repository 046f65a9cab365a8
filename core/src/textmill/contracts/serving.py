"""What inference writes: deployments and evaluations. Load tests have their own contracts."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.gates import ParityCheck


class ModelVersion(Contract):
    """A model that a name answers with, answered with before, or is to answer with if it proves itself.

    ``parity`` is what the engine was held to before it answered; None for a model published without a probe.
    ``unmerged`` says that its LoRA adapter runs on the base model's engine.
    """

    deployment_id: str
    model_id: str
    unmerged: bool = False
    parity: ParityCheck | None = None
    created_at: datetime = Field(default_factory=utc_now)


class VersionFigures(Contract):
    """What the gateway counted of one version. An error is a status from 500 on, or an answer that broke off.

    ``mean_seconds`` is over ``requests``, ``mean_ttft_s`` over the ``streamed`` ones; None for none.
    """

    requests: int = 0
    errors: int = 0
    tokens: int = 0
    streamed: int = 0
    mean_seconds: float | None = None
    mean_ttft_s: float | None = None

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


class TrialFigures(Contract):
    """A version on trial and the stable one over the same time.

    ``error_excess`` is how much higher the trial's error rate is; ``error_excess_low`` the lower end of its 95 %
    interval (Newcombe 1998, method 10). ``skipped`` counts copies that a shadow was too busy for.
    """

    trial: VersionFigures = VersionFigures()
    stable: VersionFigures = VersionFigures()
    error_excess: float = 0.0
    error_excess_low: float = -1.0
    skipped: int = 0


class Canary(ModelVersion):
    """A version that answers ``percent`` of the requests, and is taken back when it fails more than the stable one.

    That is: after ``min_requests`` to each, its error rate is more than ``max_error_excess`` above the stable one's,
    and the interval of the difference leaves out zero.
    """

    percent: float
    max_error_excess: float
    min_requests: int
    figures: TrialFigures = TrialFigures()


class Shadow(ModelVersion):
    """A version that gets a copy of ``percent`` of the requests. Nobody sees its answers."""

    percent: float
    figures: TrialFigures = TrialFigures()


class TrialEnd(Contract):
    """How the last canary or shadow of a name ended, and what was counted until then."""

    role: Literal["canary", "shadow"]
    outcome: Literal["promoted", "aborted", "aborted_automatically", "replaced"]
    reason: str
    deployment_id: str
    model_id: str
    figures: TrialFigures
    ended_at: datetime = Field(default_factory=utc_now)


class Deployment(StoredContract):
    """A name that clients ask for, and the model version that answers to it.

    ``parity`` is what the engine was held to before it answered; None for a model published without a probe.
    ``unmerged`` says that the model's LoRA adapter runs on the base model's engine. ``previous`` are the versions
    before, the latest first, for a rollback.
    """

    name: str
    deployment_id: str
    model_id: str
    parity: ParityCheck | None = None
    created_at: datetime = Field(default_factory=utc_now)
    unmerged: bool = False
    canary: Canary | None = None
    shadow: Shadow | None = None
    previous: tuple[ModelVersion, ...] = ()
    last_trial: TrialEnd | None = None


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
