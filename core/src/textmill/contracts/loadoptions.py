"""How a load test is asked for: what is sent, under which loads, and what must hold. The load itself is in load.py."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from textmill.contracts.base import Contract
from textmill.contracts.capacity import CapacityOptions
from textmill.contracts.load import ClosedLoop, Load, Poisson, Rate, Traffic
from textmill.contracts.loadreport import Level, Purpose, Side, Verdict
from textmill.contracts.loadtest import Second
from textmill.contracts.slo import Slo

DEFAULT_SWEEP = (1, 2, 4, 8, 16, 32, 64)
MOST_STAGES = 1_000


def _bare(url: str) -> str:
    """Refused here, before a job is stored, and without the address in the message."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "an address must hold no user, password, query or fragment, since it stands in the report; "
            "name the key by key_from"
        )
    return url


Address = Annotated[str, AfterValidator(_bare)]


class KeyFrom(Contract):
    """Where the target's API key is: an environment variable, or a mounted secret, of whoever runs the test.

    The key itself is never part of a job. A service looks only at variables that its owner has set aside for this
    (``TEXTMILL_INFERENCE_LOADTEST_KEY...``) and into its folder of secrets, or a client could have any of its secrets
    sent out.
    """

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    secret: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")

    @model_validator(mode="after")
    def _one_place(self) -> "KeyFrom":
        if (self.env is None) == (self.secret is None):
            raise ValueError("name one place of the key: env (a variable's name) or secret (a mounted file's name)")
        return self


class Versus(Contract):
    """Run the same loads on a second target, in the order A B B A, ``rounds`` times over.

    ``target_url`` None is the first target's. What the two share, such as a machine that slows down, so falls on both.
    """

    target_url: Address | None = None
    model: str
    key_from: KeyFrom | None = None
    metrics_url: Address | None = None
    rounds: int = Field(default=3, ge=1, le=50)


class LoadtestOptions(Contract):
    """Each load in turn is a stage: ``concurrencies`` (closed loop), ``rates`` (Poisson arrivals), then ``loads``.

    With none of them a ``capacity`` search is made if it is asked for, else the default sweep. A stage lasts
    ``seconds_per_level``, or until ``requests_per_level`` were sent. ``warm_up_s`` None warms up for as long as the
    last stage's requests took, at least 1 s. ``traffic`` says what is asked; without it ``prompts`` (or a few of ours)
    are, for ``max_tokens``.
    """

    prompts: tuple[str, ...] = ()
    max_tokens: int = Field(default=32, ge=1, le=8_192)
    traffic: Traffic | None = None
    concurrencies: tuple[int, ...] | None = None
    rates: tuple[Rate, ...] = ()
    loads: tuple[Load, ...] = ()
    capacity: CapacityOptions | None = None
    slo: Slo | None = None
    requests_per_level: int | None = Field(default=None, ge=1, le=1_000_000)
    seconds_per_level: float = Field(default=20.0, gt=0, le=3_600)
    warm_up_s: float | None = Field(default=None, ge=0, le=3_600)
    cool_down_s: float = Field(default=0.0, ge=0, le=3_600)
    timeout_s: float = Field(default=60.0, gt=0, le=3_600)

    @field_validator("concurrencies")
    @classmethod
    def _bounded(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 1 or max(value) > 10_000):
            raise ValueError("concurrencies must name at least one level, each from 1 to 10000")
        return value

    @model_validator(mode="after")
    def _few_enough(self) -> "LoadtestOptions":
        if len(self.sweep()) > MOST_STAGES:
            raise ValueError(f"{len(self.sweep())} loads; at most {MOST_STAGES} in one test")
        return self

    def sweep(self) -> tuple[Load, ...]:
        """The loads that are measured in any case, in order."""
        concurrencies = self.concurrencies or ()
        if not (concurrencies or self.rates or self.loads or self.capacity):
            concurrencies = DEFAULT_SWEEP
        return (
            *(ClosedLoop(concurrency=n) for n in concurrencies),
            *(Poisson(rate_per_s=rate, seed=i) for i, rate in enumerate(self.rates)),
            *self.loads,
        )

    def judged_by(self) -> Slo | None:
        """A capacity search without an SLO looks for the default one."""
        return self.slo or (Slo() if self.capacity is not None else None)


class StageStarted(Contract):
    """A stage that begins now. ``load`` is its concurrency or its mean rate per second."""

    number: int
    side: Side
    purpose: Purpose
    load: float
    arrivals: Load
    seconds: float


class LoadtestEvent(Contract):
    """One thing that happened in a load test, ``at_s`` after it began. Just what ``kind`` names is set."""

    at_s: float
    stage: StageStarted | None = None
    second: Second | None = None
    level: Level | None = None
    verdict: Verdict | None = None
    note: str | None = None

    @property
    def kind(self) -> str:
        return next((name for name in ("stage", "second", "level", "verdict") if getattr(self, name)), "note")

    def line(self) -> str:
        """JSON with what is set."""
        unset = {name for name in ("stage", "second", "level", "verdict", "note") if getattr(self, name) is None}
        return self.model_dump_json(exclude=unset)


class LoadtestOwner(Contract):
    """Which job a load test belongs to: stored beside its results, for readers who have the load test's id."""

    loadtest_id: str
    job_id: str
