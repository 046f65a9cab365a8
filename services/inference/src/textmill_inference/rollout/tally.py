"""What one version's exchanges came to: counts that grow, and are compared between versions."""

import math
from dataclasses import dataclass

from textmill.contracts.serving import TrialFigures, VersionFigures
from textmill_inference.gateway.ports import Outcome

_Z = 1.959964
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class Counts:
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    streamed: int = 0
    seconds: float = 0.0
    ttft_seconds: float = 0.0

    @classmethod
    def of(cls, figures: VersionFigures) -> "Counts":
        return cls(
            requests=figures.requests,
            errors=figures.errors,
            tokens=figures.tokens,
            streamed=figures.streamed,
            seconds=(figures.mean_seconds or 0.0) * figures.requests,
            ttft_seconds=(figures.mean_ttft_s or 0.0) * figures.streamed,
        )

    def plus(self, other: "Counts", sign: int = 1) -> "Counts":
        return Counts(
            requests=self.requests + sign * other.requests,
            errors=self.errors + sign * other.errors,
            tokens=self.tokens + sign * other.tokens,
            streamed=self.streamed + sign * other.streamed,
            seconds=self.seconds + sign * other.seconds,
            ttft_seconds=self.ttft_seconds + sign * other.ttft_seconds,
        )

    def minus(self, other: "Counts") -> "Counts":
        return self.plus(other, -1)

    def figures(self) -> VersionFigures:
        return VersionFigures(
            requests=self.requests,
            errors=self.errors,
            tokens=self.tokens,
            streamed=self.streamed,
            mean_seconds=self.seconds / self.requests if self.requests else None,
            mean_ttft_s=self.ttft_seconds / self.streamed if self.streamed else None,
        )


class Tally:
    """Grows on the gateway's event loop alone. ``counts`` is replaced as a whole, so any thread may read it."""

    def __init__(self) -> None:
        self.counts = Counts()

    def add(self, outcome: Outcome) -> None:
        """A client that left (status 499) says nothing about the version, and isn't counted."""
        if outcome.status == 499:
            return
        self.counts = self.counts.plus(
            Counts(
                requests=1,
                errors=int(outcome.status >= 500 or not outcome.complete),
                tokens=outcome.tokens,
                streamed=int(outcome.ttft_s is not None),
                seconds=outcome.seconds,
                ttft_seconds=outcome.ttft_s or 0.0,
            )
        )


def compare(trial: Counts, stable: Counts, skipped: int = 0) -> TrialFigures:
    """Both versions' counts, and how far apart their error rates are."""
    seen, beside = trial.figures(), stable.figures()
    return TrialFigures(
        trial=seen,
        stable=beside,
        error_excess=seen.error_rate - beside.error_rate,
        error_excess_low=excess_low(seen.errors, seen.requests, beside.errors, beside.requests),
        skipped=skipped,
    )


def excess_low(errors: int, requests: int, other_errors: int, other_requests: int) -> float:
    """The lower end of the 95 % interval of a difference of two rates; -1 without requests on either side.

    Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10: Wilson's
    intervals of both rates, combined.
    """
    if not requests or not other_requests:
        return -1.0
    rate, other = errors / requests, other_errors / other_requests
    low, high = wilson(errors, requests)[0], wilson(other_errors, other_requests)[1]
    return rate - other - math.sqrt((rate - low) ** 2 + (high - other) ** 2)


def wilson(errors: int, requests: int) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927)."""
    rate, weight = errors / requests, _Z**2 / requests
    middle = (rate + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(rate * (1 - rate) / requests + weight / (4 * requests)) / (1 + weight)
    return middle - half, middle + half
