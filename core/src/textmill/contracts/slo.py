"""What users are promised: limits on latency percentiles, on errors, and on the share of requests served in time."""

import re
from typing import Literal

from pydantic import Field

from textmill.contracts.base import Contract

Measure = Literal["ttft", "inter_token", "per_token", "e2e"]
_LIMIT = re.compile(r"(ttft|inter_token|itl|per_token|tpot|e2e)[ :]p(\d{1,2}(?:\.\d+)?)[ :<=]+(\d+(?:\.\d+)?) ?(ms|s)?")
_WORDS: dict[str, Measure] = {
    "ttft": "ttft", "inter_token": "inter_token", "itl": "inter_token", "per_token": "per_token", "tpot": "per_token",
    "e2e": "e2e",
}  # fmt: skip


class Limit(Contract):
    """``percent`` % of the requests (of the tokens, for ``inter_token``) take at most ``ms``.

    ``per_token`` is a request's mean time between its tokens.
    """

    measure: Measure
    percent: float = Field(default=99.0, gt=0, lt=100)
    ms: float = Field(gt=0, le=3_600_000)

    def __str__(self) -> str:
        return f"{self.measure} p{self.percent:g} {self.ms:g} ms"

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Of ``ttft p99 500``, ``e2e p95 < 10s`` or ``itl:p99:200ms``. Raises ``ValueError``."""
        found = _LIMIT.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError(
                f"{text!r} is no limit: give a measure (ttft, inter_token, per_token, e2e), a percentile and a time, "
                "like 'ttft p99 500ms'"
            )
        measure, percent, number, unit = found.groups()
        milliseconds = float(number) * (1000 if unit == "s" else 1)
        return cls(measure=_WORDS[measure], percent=float(percent), ms=milliseconds)


class Slo(Contract):
    """All of it must hold. A failed request breaks every latency limit as well, or failing fast would look fast.

    ``since`` is where latency counts from: ``scheduled`` is what a user waits, ``sent`` leaves out what the load
    generator held back. ``goodput_share`` is the least share of all requests that is answered within every limit.
    """

    limits: tuple[Limit, ...] = (
        Limit(measure="ttft", percent=99, ms=2_000),
        Limit(measure="per_token", percent=99, ms=200),
    )
    error_share: float = Field(default=0.01, ge=0, le=1)
    goodput_share: float | None = Field(default=None, gt=0, le=1)
    since: Literal["scheduled", "sent"] = "scheduled"
