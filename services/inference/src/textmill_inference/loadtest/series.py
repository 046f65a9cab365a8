"""The server's own Prometheus series over a run: read once a second beside the load, bounded, never in its way.

Reads only the series that the report shows. What fails is a note, not an error: many targets have no metrics. Sends no
API key: metrics are open, or closed to us.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from textmill.contracts.loadreport import Point, ServerSeries

EVERY_S = 1.0
_TIMEOUT_S = 2.0
_MOST_BYTES = 4 << 20
_MOST_POINTS = 600
"""Of one series in the report; beyond that every second point goes."""
_GIVE_UP_AFTER = 5
SHOWN = {
    "vllm:num_requests_running": "requests running",
    "vllm:num_requests_waiting": "requests waiting",
    "vllm:kv_cache_usage_perc": "KV cache in use (share)",
    "vllm:num_preemptions_total": "preemptions",
    "textmill_gateway_requests_in_flight": "requests in the gateway",
}
_SUMS = (
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:e2e_request_latency_seconds",
    "textmill_gateway_request_seconds",
)
"""Histograms whose sums and counts the breakdown takes differences of."""
_KEPT = frozenset((*SHOWN, *(f"{name}_{part}" for name in _SUMS for part in ("sum", "count"))))
Reading = dict[str, float]
"""Metric to value, summed over its labels."""


@dataclass
class Readings:
    """What one place told: by time (Unix), oldest first. ``trouble`` says why there is nothing, or no more."""

    source: str
    readings: list[tuple[float, Reading]] = field(default_factory=list)
    trouble: str = ""

    def between(self, began: float, ended: float) -> Reading | None:
        """How much each metric grew from the last reading before ``began`` to the first one after ``ended``.

        None without two readings. The ends of the run stand in for readings that aren't there.
        """
        readings = list(self.readings)
        if len(readings) < 2:
            return None
        first = next((r for at, r in reversed(readings) if at <= began), readings[0][1])
        last = next((r for at, r in readings if at >= ended), readings[-1][1])
        return {name: value - first.get(name, 0.0) for name, value in last.items()}

    def series(self, began: float) -> list[ServerSeries]:
        """For the report, in seconds since ``began``. Counters start from 0; what never moved is left out."""
        found = []
        for metric, title in SHOWN.items():
            points = [(at - began, r[metric]) for at, r in list(self.readings) if metric in r]
            if not points:
                continue
            base = points[0][1] if metric.endswith("_total") else 0.0
            step = max(1, -(-len(points) // _MOST_POINTS))
            kept = tuple(Point(at_s=round(at, 2), value=value - base) for at, value in points[::step])
            found.append(ServerSeries(source=self.source, metric=metric, title=title, points=kept))
        return found


class Scraper:
    """Reads from its start until ``stop``, in a thread of its own. Several addresses are replicas: they are summed.

    ``urls`` is asked each time, since engines are replaced. ``model`` picks the gateway's series of one model.
    """

    def __init__(
        self, source: str, urls: Callable[[], Sequence[str]], model: str = "", every_s: float = EVERY_S
    ) -> None:
        self.readings = Readings(source)
        self._urls = urls
        self._model = model
        self._every_s = every_s
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT_S, maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"scrape-{source}", daemon=True)

    def start(self) -> "Scraper":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT_S)
        self._http.clear()

    def _run(self) -> None:
        failures = 0
        while failures < _GIVE_UP_AFTER and not self._stop.is_set():
            began = time.time()
            try:
                reading = self._read()
            except (OSError, ValueError, urllib3.exceptions.HTTPError) as exc:
                failures += 1
                said = exc if isinstance(exc, ValueError) else "it can't be reached"
                self.readings.trouble = f"no metrics from {self.readings.source}: {said}"
            else:
                failures = 0
                self.readings.trouble = "" if reading else f"{self.readings.source} has none of the metrics shown here"
                self.readings.readings.append((began, reading))
            self._stop.wait(max(0.0, self._every_s - (time.time() - began)))

    def _read(self) -> Reading:
        """Raises ``OSError``, ``ValueError`` or urllib3's errors, each with what was wrong."""
        pages = [parse(self._page(url), self._model) for url in self._urls()]
        return _summed(pages)

    def _page(self, url: str) -> str:
        response = self._http.request("GET", url, redirect=False, preload_content=False)
        try:
            if response.status != 200:
                raise ValueError(f"{url} answers {response.status}")
            body = response.read(_MOST_BYTES + 1)
        finally:
            response.close()
        if len(body) > _MOST_BYTES:
            raise ValueError(f"{url} answers more than {_MOST_BYTES >> 20} MiB")
        return body.decode("utf-8", errors="replace")


def parse(text: str, model: str = "") -> Reading:
    """The series that are kept. Lines of others are dropped before parsing, which would cost more than the scrape."""
    wanted = "\n".join(line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in _KEPT)
    found: Reading = {}
    for family in text_string_to_metric_families(wanted + "\n"):
        for sample in family.samples:
            if not model or sample.labels.get("model", model) == model:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _summed(pages: Iterable[Reading]) -> Reading:
    """Over replicas; a share is their mean."""
    whole: Reading = {}
    several = list(pages)
    for page in several:
        for name, value in page.items():
            whole[name] = whole.get(name, 0.0) + (value / len(several) if name.endswith("_perc") else value)
    return whole


def metrics_url(target: str) -> str:
    """Where a server has its metrics by custom: at its root, whatever the path of its API."""
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.netloc}/metrics"


def all_series(places: Sequence[Readings], began: float) -> list[ServerSeries]:
    return [series for place in places for series in place.series(began)]
