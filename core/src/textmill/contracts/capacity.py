"""What a capacity search is asked, and what it has found. Loads are requests in flight, or requests per second."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract

LoadKind = Literal["concurrency", "rate"]
HoldVerdict = Literal["yes", "no", "undecided"]
StopReason = Literal[
    "decided", "stages", "time", "generator", "too few requests", "highest load", "lowest load", "no answers"
]


class CapacityOptions(Contract):
    """Find the highest load that meets the SLO. ``wanted`` is the load that is asked about: does it hold?

    The search doubles from ``start`` (default: ``wanted``, else 1), halves the gap until it is at most ``resolution``
    wide, then repeats stages at both of its ends. ``confidence`` is the share of searches whose interval holds the true
    capacity. ``quick`` answers for ``wanted`` alone. It ends in any case after ``max_stages`` or ``max_seconds``.
    """

    kind: LoadKind = "concurrency"
    wanted: float | None = Field(default=None, gt=0)
    start: float | None = Field(default=None, gt=0)
    min_load: float = Field(default=1.0, gt=0)
    max_load: float = Field(default=4_096.0, gt=0)
    resolution: float = Field(default=0.05, gt=0, le=1)
    confidence: float = Field(default=0.9, ge=0.5, le=0.999)
    quick: bool = False
    max_stages: int = Field(default=60, ge=1, le=1_000)
    max_seconds: float = Field(default=3_600.0, gt=0, le=86_400)

    @model_validator(mode="after")
    def _loads_in_range(self) -> "CapacityOptions":
        for name, load in (("wanted", self.wanted), ("start", self.start)):
            if load is not None and not self.min_load <= load <= self.max_load:
                raise ValueError(
                    f"{name} is {load:g}, outside min_load {self.min_load:g} to max_load {self.max_load:g}; "
                    "move one of them"
                )
        if self.min_load > self.max_load:
            raise ValueError(f"min_load {self.min_load:g} is above max_load {self.max_load:g}")
        if self.quick and self.wanted is None:
            raise ValueError("quick answers for one load: name it as wanted")
        return self


class Trial(Contract):
    """One stage of a search. ``met`` is None for a stage that says nothing (the generator's fault).

    ``evidence`` is False where too few requests were answered to claim the SLO's percentiles: such a stage steers the
    search and proves nothing. ``side`` says what the stage was to confirm, decided before it ran.
    """

    load: float
    met: bool | None
    evidence: bool = True
    side: Literal["holds", "fails"] | None = None


class CapacityFinding(Contract):
    """The interval [``low``, ``high``]: the SLO is met up to ``low``, missed from ``high`` on, each confirmed.

    None where that end could not be confirmed. ``highest_met`` and ``lowest_missed`` are what single stages showed.
    """

    kind: LoadKind
    low: float | None
    high: float | None
    highest_met: float | None
    lowest_missed: float | None
    confidence: float
    wanted: float | None = None
    verdict: HoldVerdict | None = None
    stopped: StopReason
    why: str
    trials: Sequence[Trial]
