"""What the generator and its workers tell each other, as JSON lines over pipes. Imports nothing heavy."""

from pydantic import Field

from textmill.contracts.base import Contract
from textmill.contracts.load import Stage
from textmill.contracts.loadtest import Clock, ErrorClass, ErrorSample, NotSent, Phase, SlowRequest

Buckets = dict[int, int]
"""A histogram's counts by bucket."""


class Gauge(Contract):
    """How many tokens of the target a prompt of made-up words comes to: ``base`` plus ``per_word`` a word."""

    base: float = 8.0
    per_word: float = 1.0


class Order(Contract):
    """One worker's part of one stage: the first line that it reads. The second is ``Go``.

    ``host`` and ``port`` are what is dialled, resolved once; ``key`` goes into a header and nowhere else.
    """

    stage: Stage
    worker: int
    workers: int
    host: str
    port: int
    tls: bool
    server_name: str
    host_header: str
    path: str
    run: str
    key: str = ""
    gauge: Gauge = Gauge()
    continuous_usage: bool = True
    """Whether to ask for usage in each chunk; a target that refuses the option is not asked."""
    trace: str | None = None
    """Path of the trace's entries, one a line."""
    cpu: int | None = None
    """The core to stay on."""


class Ready(Contract):
    """The worker's first line."""

    worker: int
    ready: bool = True


class Go(Contract):
    """``at``: the stage's beginning on the machine's monotonic clock, which all processes share."""

    at: float


class PhaseTally(Contract):
    """What one second added to the counts of a phase."""

    scheduled: int = 0
    sent: int = 0
    succeeded: int = 0
    not_sent: dict[NotSent, int] = Field(default_factory=dict)
    errors: dict[ErrorClass, int] = Field(default_factory=dict)


class Tick(Contract):
    """One second of one worker. ``counted`` are the histograms of the part that counts, ``others`` the rest."""

    worker: int
    at_s: int
    phases: dict[Phase, PhaseTally]
    counted: dict[Clock, Buckets]
    others: dict[Clock, Buckets]
    output_tokens: int
    in_flight: int
    connections: int
    cpu_share: float
    starved_share: float | None
    loop_lag: Buckets
    in_window: bool
    """Whether the whole of it lies in the counted part."""


class Ended(Contract):
    """A worker's last line. ``window_*`` is what came within the counted part, whenever it was asked."""

    worker: int
    window_s: float
    window_succeeded: int
    window_tokens: int
    prompt_tokens: int
    output_tokens: int
    sources: dict[str, int]
    gaps: dict[str, int]
    server_times: dict[str, Buckets]
    slowest: tuple[SlowRequest, ...]
    error_samples: tuple[ErrorSample, ...]
    cpu_s: float
    chunks: int
    requests: int
    own_limits: int
    """Connections that this machine refused to open: no file or port was left."""


class FromWorker(Contract):
    """One line of a worker: just one of these is set."""

    ready: Ready | None = None
    tick: Tick | None = None
    ended: Ended | None = None
