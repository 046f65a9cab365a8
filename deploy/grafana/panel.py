"""What a dashboard is made of, and the queries that several panels share. How Grafana wants it is build.py's.

Rates are over ``$__rate_interval``, which Grafana makes wide enough for the scrape interval. A figure that may have no
series yet (nothing has failed so far) is shown as 0.
"""

from dataclasses import dataclass
from typing import Literal

Query = tuple[str, str]
"""PromQL, and the legend."""


@dataclass(frozen=True)
class Panel:
    """``says`` tells the reader what is good and what isn't; ``limit`` is where it turns red."""

    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    limit: float | None = None
    least: float | None = 0


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def quantiles(metric: str, by: str = "model", where: str = "") -> tuple[Query, ...]:
    """Median and 99th percentile of a histogram."""
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{where}[$__rate_interval])))",
            f"{{{{{by}}}}} p{name}",
        )
        for q, name in ((0.5, 50), (0.99, 99))
    )


RATE = "[$__rate_interval]"
REQUESTS = "textmill_gateway_requests_total"
TTFT = "textmill_gateway_time_to_first_token_seconds"
COMPLETIONS = 'job="textmill-gateway",route=~"chat|completions"'
EDGE = '{job="textmill-gateway"}'
"""As clients see it: an engine of ours has a gateway too, which counts the same requests once more."""


def p99(metric: str, where: str = "") -> str:
    return f"histogram_quantile(0.99, sum by (le) (rate({metric}_bucket{where}{RATE})))"


def mean(metric: str) -> str:
    return f"sum(rate({metric}_sum{RATE})) / sum(rate({metric}_count{RATE}))"
