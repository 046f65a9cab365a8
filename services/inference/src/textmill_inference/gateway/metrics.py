"""The gateway's metrics, per route, model and key group. Labels are never ids, and never what a client invents.

Kept as plain numbers and rendered when Prometheus asks: a histogram of the client library costs 1.5 us an observation,
one of these 0.3 us, and a stream makes one for each piece it passes on. Only the event loop writes here; a scrape in
another thread may see an exchange half counted.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_LABELS = ("route", "model", "group")
Label = str | int


class Buckets:
    """A histogram of seconds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def rendered(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum."""
        names = [*(f"{float(bound)!r}" for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True)), self._sum


class Series:
    """The numbers of one route, model and key group. An exchange looks them up once and then only adds."""

    __slots__ = (
        "broken", "completion_tokens", "gaps", "in_flight", "prompt_tokens", "retries", "seconds", "shadows",
        "statuses", "ttft", "unreported_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.shadows: defaultdict[str, int] = defaultdict(int)
        self.in_flight = self.retries = self.broken = 0
        self.prompt_tokens = self.completion_tokens = self.unreported_tokens = 0
        self.seconds, self.ttft, self.gaps = Buckets(_SECONDS), Buckets(_SECONDS), Buckets(_GAPS)


class Waits(Collector):
    """How long requests waited to be admitted, by model and key group."""

    def __init__(self, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._children: dict[tuple[str, str], Buckets] = {}
        if registry is not None:
            registry.register(self)

    def labels(self, model: str, group: str) -> Buckets:
        found = self._children.get((model, group))
        if found is None:
            found = self._children[model, group] = Buckets(_SECONDS)
        return found

    def collect(self) -> Iterator[Metric]:
        histogram = HistogramMetricFamily(
            "textmill_gateway_queue_seconds", "Time that a request waited to be admitted", labels=("model", "group")
        )
        for labels, buckets in list(self._children.items()):
            histogram.add_metric(labels, *buckets.rendered())
        yield histogram


class GatewayMetrics(Collector):
    """All series. ``registry`` renders them."""

    def __init__(self, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}
        if registry is not None:
            registry.register(self)

    def of(self, route: str, model: str, group: str) -> Series:
        """``model`` must be a served one or empty, ``group`` one of the owner's."""
        key = (route, model, group)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series()
        return found

    def collect(self) -> Iterator[Metric]:
        series = list(self._series.items())
        yield _counter(_REQUESTS, series)
        series = [(labels, one) for labels, one in series if labels[1]]  # without a model it got no further
        for kind in _COUNTERS:
            yield _counter(kind, series)
        in_flight = GaugeMetricFamily(
            "textmill_gateway_requests_in_flight", "Requests that wait or are being answered", labels=_LABELS
        )
        for labels, one in series:
            in_flight.add_metric(labels, one.in_flight)
        yield in_flight
        for name, help_text, pick in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, help_text, labels=_LABELS)
            for labels, one in series:
                histogram.add_metric(labels, *pick(one).rendered())
            yield histogram


_HISTOGRAMS: tuple[tuple[str, str, Callable[[Series], Buckets]], ...] = (
    ("textmill_gateway_request_seconds", "Time from the whole request to the end of the answer", lambda s: s.seconds),
    (
        "textmill_gateway_time_to_first_token_seconds",
        "Time to a stream's first bytes",
        lambda s: s.ttft,
    ),
    ("textmill_gateway_inter_token_seconds", "Time between the pieces of a stream as they came", lambda s: s.gaps),
)
_Counter = tuple[str, str, tuple[str, ...], Callable[[Series], Iterable[tuple[tuple[Label, ...], int]]]]
_REQUESTS: _Counter = (
    "textmill_gateway_requests", "Requests answered; 499: the client left first", ("status",),
    lambda s: [((status,), count) for status, count in list(s.statuses.items())],
)  # fmt: skip
_COUNTERS: tuple[_Counter, ...] = (
    (
        "textmill_gateway_tokens",
        "Tokens as the answers told; unreported: events of streams without usage, so at least as many", ("kind",),
        lambda s: [
            (("prompt",), s.prompt_tokens), (("completion",), s.completion_tokens),
            (("unreported",), s.unreported_tokens),
        ],
    ),
    ("textmill_gateway_retries", "Requests sent again before their first byte", (), lambda s: [((), s.retries)]),
    ("textmill_gateway_broken_streams", "Streams that the engine broke off", (), lambda s: [((), s.broken)]),
    (
        "textmill_gateway_shadow_requests", "Copies sent to a shadow, by how they ended", ("outcome",),
        lambda s: [((outcome,), count) for outcome, count in list(s.shadows.items())],
    ),
)  # fmt: skip


def _counter(kind: _Counter, series: Sequence[tuple[tuple[str, str, str], Series]]) -> CounterMetricFamily:
    name, help_text, more, pick = kind
    family = CounterMetricFamily(name, help_text, labels=(*_LABELS, *more))
    for labels, one in series:
        for own, value in pick(one):
            family.add_metric((*labels, *map(str, own)), value)
    return family


METRICS = GatewayMetrics()
QUEUE_SECONDS = Waits()
QUEUE_LENGTH = Gauge("textmill_gateway_queue_length", "Requests that wait to be admitted", ["model"])
QUOTA_USED = Gauge(
    "textmill_gateway_quota_used_ratio", "Of each group, the key that has used most of a quota", ["group", "quota"]
)
REJECTED = Counter("textmill_gateway_rejected_total", "Requests that were not admitted", ["model", "group", "reason"])
