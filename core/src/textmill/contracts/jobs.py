"""What is asked of textmill (one class per kind of job) and how far a job has come.

The JSON body of a ``POST`` *is* the job: ids may be left out and are then made up. ``then`` names the jobs that
follow, each with its ids already in place, so that a whole recipe is one submission.
"""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue, model_validator

from textmill.contracts.base import Contract, Id, Name, StoredContract, new_id, utc_now
from textmill.contracts.exports import ExportFormat
from textmill.contracts.loadoptions import Address, KeyFrom, LoadtestOptions, Versus
from textmill.contracts.pairwise import CompareOptions
from textmill.contracts.synthesis import MixSource, SynthOptions
from textmill.contracts.training import SOURCE_OF_OBJECTIVE, TrainOptions

JobKind = Literal[
    "crawl",
    "corpus",
    "preflight",
    "synth",
    "mix",
    "freeze",
    "train",
    "export",
    "deploy",
    "evaluate",
    "loadtest",
    "compare",
    "harvest",
]
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class BaseJob(StoredContract):
    """What every job has. ``then`` is submitted in order, each when the one before it has succeeded.

    ``traceparent`` is the span (W3C Trace Context) that asked for it, where tracing is on.
    """

    job_id: Id = Field(default_factory=lambda: new_id("job"))
    submitted_at: datetime = Field(default_factory=utc_now)
    traceparent: str | None = Field(default=None, pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
    then: "tuple[Job, ...]" = ()

    def next_job(self) -> "Job | None":
        """The job that follows this one, carrying the rest of the chain."""
        if not self.then:
            return None
        head, *rest = self.then
        asked_by = head.traceparent or self.traceparent
        return head.model_copy(update={"then": tuple(rest), "submitted_at": utc_now(), "traceparent": asked_by})


class CrawlJob(BaseJob):
    """Fetch these URLs, politely, into documents. Follows no links."""

    kind: Literal["crawl"] = "crawl"
    crawl_id: Id = Field(default_factory=lambda: new_id("crl"))
    urls: tuple[str, ...] = Field(min_length=1, max_length=10_000)


class SplitRule(Contract):
    """How a document becomes passages. ``max_characters`` bounds each: longer ones are cut at a sentence end."""

    method: Literal["blank_lines", "headings", "budget"] = "blank_lines"
    max_characters: int = Field(default=2_000, ge=50, le=100_000)


class CorpusJob(BaseJob):
    """Split documents into passages."""

    kind: Literal["corpus"] = "corpus"
    corpus_id: Id = Field(default_factory=lambda: new_id("cor"))
    document_ids: tuple[Id, ...] = ()
    crawl_ids: tuple[Id, ...] = ()
    split: SplitRule = SplitRule()


class SynthJob(SynthOptions, BaseJob):
    """Turn a corpus into a dataset."""

    kind: Literal["synth"] = "synth"
    corpus_id: Id
    dataset_id: Id = Field(default_factory=lambda: new_id("ds"))


class PreflightJob(SynthOptions, BaseJob):
    """Try the same synthesis on a few passages, and forecast calls, tokens, cost, time and yield of the whole.

    ``base_model`` is then asked what the pilot's records teach, with and without the passage. It and its ``base_url``
    default to the model and endpoint of the synth service's settings.
    """

    kind: Literal["preflight"] = "preflight"
    corpus_id: Id
    preflight_id: Id = Field(default_factory=lambda: new_id("pre"))
    passages: int = Field(default=8, ge=1, le=1_000)
    base_model: str | None = None
    base_url: str | None = None


class MixJob(BaseJob):
    """Make one dataset of several, each with its weight and its number of epochs."""

    kind: Literal["mix"] = "mix"
    dataset_id: Id = Field(default_factory=lambda: new_id("ds"))
    sources: tuple[MixSource, ...] = Field(min_length=1, max_length=100)
    seed: int = 0


class FreezeJob(BaseJob):
    """Make a new dataset of what a review left of another: edits applied, rejected records out."""

    kind: Literal["freeze"] = "freeze"
    dataset_id: Id = Field(default_factory=lambda: new_id("ds"))
    reviewed_id: Id
    only_approved: bool = False


class TrainJob(TrainOptions, BaseJob):
    """Fine-tune and publish the model. One source, as the objective needs: a dataset, a corpus, or preferences."""

    kind: Literal["train"] = "train"
    dataset_id: Id | None = None
    corpus_id: Id | None = None
    preferences_id: Id | None = None
    run_id: Id = Field(default_factory=lambda: new_id("run"))
    model_id: Id = Field(default_factory=lambda: new_id("mdl"))

    @model_validator(mode="after")
    def _one_source(self) -> "TrainJob":
        needed = SOURCE_OF_OBJECTIVE[self.objective]
        given = [name for name in SOURCE_OF_OBJECTIVE.values() if getattr(self, name) is not None]
        if given != [needed]:
            raise ValueError(
                f"objective {self.objective!r} trains on {needed} and nothing else; given: {', '.join(given) or 'none'}"
            )
        return self

    @property
    def source_id(self) -> str:
        """The id of what it is trained on."""
        return str(getattr(self, SOURCE_OF_OBJECTIVE[self.objective]))


class ExportJob(BaseJob):
    """Write a published model in the format of other programs."""

    kind: Literal["export"] = "export"
    export_id: Id = Field(default_factory=lambda: new_id("exp"))
    model_id: Id
    format: ExportFormat = "gguf"


class DeployJob(BaseJob):
    """Let ``name`` answer with ``model_id``: starts an engine, or swaps the model of the one that has the name.

    With ``canary_percent`` it answers so many of the requests, beside the version that is there; with
    ``shadow_percent`` it gets a copy of so many and nobody sees its answers. A canary is taken back when its error rate
    exceeds the stable version's by more than ``max_error_excess`` after ``min_requests`` to each.

    ``unmerged`` serves the model's LoRA adapter on the base model's engine instead of an engine of its own.
    ``rollback_from`` is the deployment that this one takes back: it is left out of the versions to go back to.
    """

    kind: Literal["deploy"] = "deploy"
    deployment_id: Id = Field(default_factory=lambda: new_id("dep"))
    name: Name
    model_id: Id
    canary_percent: float | None = Field(default=None, ge=0, le=100)
    shadow_percent: float | None = Field(default=None, ge=0, le=100)
    max_error_excess: float = Field(default=0.05, ge=0, le=1)
    min_requests: int = Field(default=50, ge=1, le=1_000_000)
    unmerged: bool = False
    rollback_from: Id | None = None

    @model_validator(mode="after")
    def _one_role(self) -> "DeployJob":
        if self.canary_percent is not None and self.shadow_percent is not None:
            raise ValueError("canary_percent and shadow_percent exclude each other: deploy twice, once for each")
        return self


class EvaluateOptions(Contract):
    """How many held-out questions are asked, and how. ``before`` names the served model to compare with.

    ``lm_eval_tasks`` are benchmark tasks by lm-eval's names, put to both models too, each cut to ``lm_eval_limit``
    questions; lm-eval must be installed beside the inference service.
    """

    before: str
    max_questions: int = Field(default=200, ge=1, le=100_000)
    max_tokens: int = Field(default=48, ge=1, le=8_192)
    concurrency: int = Field(default=16, ge=1, le=1_024)
    lm_eval_tasks: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")], ...] = Field(
        default=(), max_length=50
    )
    lm_eval_limit: int | None = Field(default=None, ge=1)


class EvaluateJob(EvaluateOptions, BaseJob):
    """Put the held-out questions of a dataset to two served models and score both."""

    kind: Literal["evaluate"] = "evaluate"
    evaluation_id: Id = Field(default_factory=lambda: new_id("evl"))
    dataset_id: Id
    after: str


class LoadtestJob(LoadtestOptions, BaseJob):
    """Drive an OpenAI-compatible endpoint, our own gateway by default. ``versus`` is a second one to compare with.

    ``metrics_url`` is where the target's server has its Prometheus metrics, by default /metrics at its root.
    """

    kind: Literal["loadtest"] = "loadtest"
    loadtest_id: Id = Field(default_factory=lambda: new_id("lt"))
    model: str
    target_url: Address | None = None
    key_from: KeyFrom | None = None
    metrics_url: Address | None = None
    versus: Versus | None = None
    dataset_id: Id | None = None

    @model_validator(mode="after")
    def _compares_loads(self) -> "LoadtestJob":
        if self.versus is not None and self.capacity is not None:
            raise ValueError("versus compares set loads: name concurrencies, rates or loads instead of capacity")
        return self


class CompareJob(CompareOptions, BaseJob):
    """Put the same prompts to several served models, for people and a judge to compare."""

    kind: Literal["compare"] = "compare"
    comparison_id: Id = Field(default_factory=lambda: new_id("cmp"))


class HarvestJob(BaseJob):
    """Make a document of harvested traffic: the rows at ``rows_key``, kept under ``name``."""

    kind: Literal["harvest"] = "harvest"
    harvest_id: Id
    rows_key: str
    name: str


Job = Annotated[
    CrawlJob
    | CorpusJob
    | PreflightJob
    | SynthJob
    | MixJob
    | FreezeJob
    | TrainJob
    | ExportJob
    | DeployJob
    | EvaluateJob
    | LoadtestJob
    | CompareJob
    | HarvestJob,
    Field(discriminator="kind"),
]
for _kind in (BaseJob, *get_args(get_args(Job)[0])):
    _kind.model_rebuild()


class Progress(Contract):
    """How far an attempt has come. ``done`` of ``total`` ``unit``s of the stage it is in."""

    stage: str = "starting"
    done: float = 0
    total: float | None = None
    unit: str = ""
    figures: dict[str, float] = Field(default_factory=dict)


class Lease(StoredContract):
    """An attempt's sign of life, rewritten by its holder alone. Lapses ``ttl_s`` after ``renewed_at``.

    ``released`` says that the holder let go: after an error (``counted`` if it was the job's own fault), or to drain.
    ``not_before`` is then the earliest time for the next attempt.
    """

    attempt: int
    worker: str
    started_at: datetime
    renewed_at: datetime
    ttl_s: float
    progress: Progress = Progress()
    faults: int = 0
    """Counted attempts that came before this one."""
    released: bool = False
    counted: bool = True
    not_before: datetime | None = None
    error: str | None = None

    def live(self, now: datetime) -> bool:
        return not self.released and (now - self.renewed_at).total_seconds() < self.ttl_s


class Failure(Contract):
    """Why a job failed. ``code`` is the error's class in snake case; ``retryable`` tells if trying again could help."""

    code: str
    message: str
    retryable: bool


class Output(Contract):
    """What a job made: its manifest, and where readers look for it."""

    manifest_key: str
    manifest: JsonValue


class Result(StoredContract):
    """How a job ended. Written once, create-only: this write *is* the commit."""

    state: Literal["succeeded", "failed", "cancelled"]
    attempt: int
    finished_at: datetime = Field(default_factory=utc_now)
    output: Output | None = None
    failure: Failure | None = None


class JobView(Contract):
    """A job as clients see it."""

    job: Job
    state: JobState
    life: int
    attempts: int
    cancel_requested: bool = False
    progress: Progress | None = None
    worker: str | None = None
    started_at: datetime | None = None
    not_before: datetime | None = None
    last_error: str | None = None
    result: Result | None = None
    next_job_id: str | None = None

    @property
    def finished(self) -> bool:
        return self.result is not None
