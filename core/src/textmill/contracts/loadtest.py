"""What a load test measured: counts that add up, latencies with intervals, and what the generator knows of itself.

What it was asked for is in load.py. Times since the stage's beginning carry ``_s``, latencies ``_ms``.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract
from textmill.contracts.load import Stage


class ErrorClass(StrEnum):
    """How a request failed. ``WRONG_CONTENT``: a 200 whose body isn't what the API promises."""

    REFUSED = "refused"
    RESET = "reset"
    TIMEOUT = "timeout"
    CLIENT_ERROR = "4xx"
    TOO_MANY = "429"
    SERVER_ERROR = "5xx"
    BROKEN_STREAM = "broken_stream"
    WRONG_CONTENT = "wrong_content"


class NotSent(StrEnum):
    """Why a scheduled request was never sent. ``IN_FLIGHT``: as many as the stage allows were open already."""

    IN_FLIGHT = "in_flight_limit"
    ENDED = "ended"
    WORKER_LOST = "worker_lost"


class Phase(StrEnum):
    WARM_UP = "warm_up"
    MEASURED = "measured"
    COOL_DOWN = "cool_down"


class Clock(StrEnum):
    """What the histograms are of. ``*_SCHEDULED`` counts from when a request was due, ``*_SENT`` from when its bytes
    were handed to the socket; a gap between them is time that a user waits and the target doesn't see (Gil Tene's
    coordinated omission). ``INTER_TOKEN`` has a sample for each token after the first, ``PER_TOKEN`` one for each
    request: its mean time between tokens. ``LATENESS`` is the generator's own delay: due to sent, less connecting."""

    TTFT_SCHEDULED = "ttft_scheduled"
    TTFT_SENT = "ttft_sent"
    INTER_TOKEN = "inter_token"
    PER_TOKEN = "per_token"
    E2E_SCHEDULED = "e2e_scheduled"
    E2E_SENT = "e2e_sent"
    FIRST_BYTE = "first_byte"
    CONNECT = "connect"
    LATENESS = "lateness"


class Quantile(Contract):
    """A percentile and the interval that holds the true one with 95 % confidence, from order statistics."""

    percent: float
    ms: float
    low_ms: float
    high_ms: float


class Latency(Contract):
    """The distribution of one clock. ``quantiles`` has only those that the sample supports: a p99 needs 662 (MLPerf).

    ``histogram`` is the whole of it in microseconds, three significant digits, in HdrHistogram's V2 format
    (compressed, base64), which other tools read and ``loadtest.histogram.Histogram.decode`` does.
    """

    samples: int
    mean_ms: float
    min_ms: float
    max_ms: float
    quantiles: tuple[Quantile, ...]
    histogram: str

    def at(self, percent: float) -> Quantile | None:
        """None when the sample is too small for it."""
        return next((q for q in self.quantiles if q.percent == percent), None)


class Counts(Contract):
    """scheduled = sent + not sent; sent = succeeded + errors + under way at the end: ``balanced``, else a doubt.

    ``sent`` counts what was begun: a refused connection is an error of a request that was sent.
    """

    scheduled: int = 0
    sent: int = 0
    not_sent: dict[NotSent, int] = Field(default_factory=dict)
    succeeded: int = 0
    errors: dict[ErrorClass, int] = Field(default_factory=dict)
    under_way: int = 0

    @property
    def failed(self) -> int:
        """Errors, and what the in-flight limit kept back: to its user that request failed as well."""
        return sum(self.errors.values()) + self.not_sent.get(NotSent.IN_FLIGHT, 0)

    @property
    def error_share(self) -> float:
        """0 when nothing has ended."""
        return self.failed / ended if (ended := self.succeeded + self.failed) else 0.0

    @property
    def balanced(self) -> bool:
        return (
            self.scheduled == self.sent + sum(self.not_sent.values())
            and self.sent == self.succeeded + sum(self.errors.values()) + self.under_way
        )


class Tokens(Contract):
    """Of requests that count and succeeded.

    ``source`` is usage when the target counts, and chunks when it sends no usage: then ``output`` is how many chunks
    held text. ``gaps`` is what the inter-token times are between: tokens when each chunk comes with usage, else chunks.
    """

    prompt: int = 0
    output: int = 0
    source: Literal["usage", "chunks", "mixed", "none"] = "none"
    gaps: Literal["tokens", "chunks", "mixed", "none"] = "none"


class Second(Contract):
    """What happened in the second that begins ``at_s`` after the stage did, over all workers.

    Latencies are of what came in it, of any phase; percentiles are for plots, so they are given for any sample.
    ``in_flight`` is at its end.
    """

    at_s: int
    phase: Phase
    scheduled: int = 0
    sent: int = 0
    succeeded: int = 0
    errors: dict[ErrorClass, int] = Field(default_factory=dict)
    not_sent: int = 0
    output_tokens: int = 0
    in_flight: int = 0
    connections: int = 0
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    inter_token_p50_ms: float | None = None
    inter_token_p99_ms: float | None = None
    e2e_p50_ms: float | None = None
    e2e_p99_ms: float | None = None
    lateness_p99_ms: float | None = None
    generator_cpu: float = 0.0
    """The busiest worker's share of a core."""


class WorkerHealth(Contract):
    """One process of the generator, over the counted part. Shares are of one core.

    ``loop_lag_p99_ms``: how late its event loop came to things, by time: a loop that stood still for one second in ten
    is late for a tenth of the time. ``starved_share``: ready to run, while the core was somebody else's (None where
    the kernel doesn't tell).
    """

    worker: int
    cpu_share: float
    busiest_second: float
    starved_share: float | None
    loop_lag_p99_ms: float
    loop_lag_max_ms: float
    lost: bool = False


class Calibration(Contract):
    """The error budget: what the generator adds by itself, found against the null server, which keeps its own times.

    ``added_*``: the generator's quantile less the null server's. One worker with its part of the load; rates are what
    it came to. ``cpu_us_per_request`` and ``cpu_us_per_chunk`` are all of its CPU, shared out among the ones or among
    the others. ``when`` is after for a second one, made since the target's pace wasn't what was expected.
    """

    when: Literal["before", "after"]
    seconds: float
    concurrency: int
    requests_per_s: float
    chunks_per_s: float
    added_ttft_p50_ms: float
    added_ttft_p99_ms: float
    added_inter_token_p99_ms: float
    lateness_p99_ms: float
    cpu_share: float
    cpu_us_per_request: float
    cpu_us_per_chunk: float
    errors: int = 0


class Doubt(Contract):
    """A rule that the run broke: the generator itself could explain the result. ``code`` is for programs."""

    code: Literal[
        "late",
        "loop_lag",
        "cpu",
        "starved",
        "budget",
        "uncalibrated",
        "worker_lost",
        "unbalanced",
        "cancelled",
        "own_limit",
    ]
    message: str
    value: float
    limit: float


class SlowRequest(Contract):
    """One of the slowest. Times count from its scheduled time, in milliseconds; None for what never came."""

    request_id: str
    scheduled_s: float
    sent_ms: float | None
    first_byte_ms: float | None
    first_token_ms: float | None
    last_byte_ms: float | None
    prompt_tokens: int
    output_tokens: int
    outcome: str


class ErrorSample(Contract):
    """What one failed request was told, cut to 500 characters."""

    error: ErrorClass
    at_s: float
    status: int | None
    detail: str


class Measured(Contract):
    """A stage, and what came of it. ``valid`` is false when ``doubts`` has any: then no figure here is a finding.

    ``seconds`` is how long the counted part took; ``requests_per_s`` and ``output_tokens_per_s`` are of what ended and
    what came within it. ``server_times`` are what the target says of its own times, by name, as vLLM does with
    ``--enable-per-request-metrics`` (``queue_time_ms``, ``time_to_first_token_ms``, ``generation_time_ms``) and any
    server in a ``Server-Timing`` header (``header_<name>``).
    """

    stage: Stage
    started_at: float
    """Unix time of the stage's beginning, to lay the server's own series beside."""
    seconds: float
    workers: int
    counts: dict[Phase, Counts]
    latencies: dict[Clock, Latency]
    """Of requests that count and succeeded; lateness, connecting and inter-token times of failed ones, too."""
    server_times: dict[str, Latency] = Field(default_factory=dict)
    tokens: Tokens
    requests_per_s: float
    output_tokens_per_s: float
    series: tuple[Second, ...]
    calibrations: tuple[Calibration, ...]
    health: tuple[WorkerHealth, ...]
    slowest: tuple[SlowRequest, ...] = ()
    error_samples: tuple[ErrorSample, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    notes: Sequence[str] = ()

    @property
    def valid(self) -> bool:
        return not self.doubts

    @property
    def counted(self) -> Counts:
        return self.counts.get(Phase.MEASURED, Counts())
