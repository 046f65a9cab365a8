"""What a load test reports: a verdict in words, figures with intervals for each stage, and where the time went.

A stage's histograms and seconds are kept beside the report, as ``Measured``; here is what people and programs read.
Latencies are in milliseconds.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.capacity import CapacityFinding, HoldVerdict, LoadKind
from textmill.contracts.load import Load
from textmill.contracts.loadtest import Doubt, ErrorClass, ErrorSample, Quantile
from textmill.contracts.slo import Limit, Slo

Side = Literal["a", "b"]
Purpose = Literal["sweep", "explore", "confirm", "compare"]


class Latencies(Contract):
    """Of one quantity. ``p50``, ``p90`` and ``p99`` are None where the sample can't support them; a p99 needs 662."""

    samples: int
    mean: float
    max: float
    p50: float | None
    p90: float | None
    p99: float | None
    quantiles: tuple[Quantile, ...]


class LimitResult(Contract):
    """``share`` of the samples was beyond the limit, failed requests included; it may be 1 - percent/100.

    ``met`` is None when nothing of the kind was measured. ``enough`` tells whether the sample supports the percentile.
    """

    limit: Limit
    met: bool | None
    share: float
    low: float
    high: float
    samples: int
    needed: int
    enough: bool


class StageJudgement(Contract):
    """Whether a stage met the SLO: None if it was spoiled. ``evidence`` is False where it had too few requests.

    At least ``goodput_low`` and at most ``goodput_high`` of the requests were within every limit: histograms tell how
    many broke each limit, not whether they were the same (Fréchet's bounds).
    """

    met: bool | None
    evidence: bool
    limits: tuple[LimitResult, ...]
    error_share: float
    error_share_high: float
    errors_met: bool
    goodput_low: float
    goodput_high: float
    goodput_met: bool
    why: str


class TimeShare(Contract):
    """A part of a request's way, and its mean share of the time."""

    name: Literal["generator", "network and gateway", "network", "gateway", "server front end", "queue", "prefill",
                  "decode", "server"]  # fmt: skip
    mean_ms: float
    source: str


class Breakdown(Contract):
    """Where the mean time went, from when a request was due to its last byte. Means add up; percentiles wouldn't.

    ``unexplained_ms`` is what the parts don't sum to: the server's figures are of all it answered in the stage.
    """

    total_ms: float
    parts: tuple[TimeShare, ...]
    unexplained_ms: float
    notes: tuple[str, ...] = ()


class Point(Contract):
    """A value of the server's, ``at_s`` after the run's beginning."""

    at_s: float
    value: float


class ServerSeries(Contract):
    """A metric of the server's over the run. Summed over its labels."""

    source: str
    metric: str
    title: str
    points: tuple[Point, ...]


class Level(Contract):
    """One stage. ``load`` is its concurrency or its mean rate; TTFT and end-to-end per request, ITL per token.

    ``ttft_ms`` and ``e2e_ms`` count from when the request was due; ``*_sent_ms`` from when it was sent.
    """

    number: int
    side: Side = "a"
    purpose: Purpose = "sweep"
    kind: LoadKind
    load: float
    arrivals: Load
    concurrency: int | None
    started_at: float
    began_s: float
    seconds: float
    valid: bool
    doubts: tuple[Doubt, ...]
    requests: int
    succeeded: int
    errors: dict[ErrorClass, int]
    not_sent: int
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    output_tokens: int
    in_flight: float
    ttft_ms: Latencies | None
    itl_ms: Latencies | None
    e2e_ms: Latencies | None
    ttft_sent_ms: Latencies | None
    e2e_sent_ms: Latencies | None
    per_token_ms: Latencies | None
    lateness_ms: Latencies | None
    server_ms: dict[str, Latencies] = Field(default_factory=dict)
    judgement: StageJudgement | None = None
    breakdown: Breakdown | None = None
    error_samples: tuple[ErrorSample, ...] = ()
    notes: tuple[str, ...] = ()


class Knee(Contract):
    """Where the lines throughput = ``per_load`` x load and throughput = ``throughput`` cross. See knee.py."""

    load: float
    throughput: float
    per_load: float
    relative_error: float
    before: int
    beyond: int


class Scaling(Contract):
    """How many requests in flight one replica should have, from where that comes, and what to apply."""

    in_flight: float
    measured_in_flight: float
    headroom: float
    source: str
    keda: str
    hpa: str
    notes: tuple[str, ...] = ()


class Difference(Contract):
    """One figure of both sides. [``low``, ``high``] holds b less a with 95 % confidence.

    ``finding`` is "no difference shown" when the interval holds 0.
    """

    name: str
    percent: float | None
    unit: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    finding: Literal["b lower", "b higher", "no difference shown"]


class Comparison(Contract):
    """Two targets, or two runs, under the same load. ``pairs`` counts neighbouring stages, one of each."""

    load: float
    kind: LoadKind
    interleaved: bool
    pairs: int
    rows: tuple[Difference, ...]
    notes: tuple[str, ...] = ()


class ErrorBudget(Contract):
    """The most that the generator itself added over the run's valid stages, as calibration against the null server
    found it; None without calibration. ``worst_cpu`` is of one core."""

    added_ttft_p50_ms: float | None
    added_ttft_p99_ms: float | None
    added_inter_token_p99_ms: float | None
    lateness_p99_ms: float | None
    worst_cpu: float
    valid_stages: int
    invalid_stages: int


class Verdict(Contract):
    """The answer first: ``headline`` in one sentence, then the ``reasons``, then what to do."""

    answer: HoldVerdict | Literal["measured", "invalid"]
    headline: str
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


class LoadtestReport(StoredContract):
    """``files`` maps report.html, report.csv and series.json to their keys in the store.

    No API key or other secret is ever in it.
    """

    loadtest_id: str
    target: str
    model: str
    versus_target: str | None = None
    versus_model: str | None = None
    verdict: Verdict
    slo: Slo | None = None
    levels: Sequence[Level]
    capacity: CapacityFinding | None = None
    knee: Knee | None = None
    comparisons: Sequence[Comparison] = ()
    scaling: Scaling | None = None
    budget: ErrorBudget
    seconds: float
    notes: Sequence[str] = ()
    files: dict[str, str] = Field(default_factory=dict)
    created_at: datetime = Field(default_factory=utc_now)
