"""vLLM's own metrics beside ours: its servers listen on the loopback address alone, where no Prometheus reaches them.

Read anew at each scrape. Engines elsewhere are left to Prometheus itself.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import urllib3
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)
_PREFIX = "vllm:"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class VllmMetrics(Collector):
    """``urls`` says where engines are now. One that doesn't answer within ``timeout_s`` has no metrics this time."""

    def __init__(
        self,
        urls: Callable[[], Iterable[str]],
        timeout_s: float = 2.0,
        registry: CollectorRegistry | None = REGISTRY,
    ) -> None:
        self._urls = urls
        self._timeout_s = timeout_s
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False)
        if registry is not None:
            registry.register(self)

    def describe(self) -> list[Metric]:
        """None beforehand: which there are, only a running engine tells."""
        return []

    def collect(self) -> Iterator[Metric]:
        here = sorted({url for url in self._urls() if urlsplit(url).hostname in _LOOPBACK})
        if not here:
            return
        found: dict[str, Metric] = {}
        with ThreadPoolExecutor(len(here)) as pool:
            for families in pool.map(self._read, here):
                for family in families:
                    # The same family of several engines is one, or Prometheus would refuse the page.
                    known = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    known.samples.extend(family.samples)
        yield from found.values()

    def _read(self, url: str) -> list[Metric]:
        try:
            page = self._http.request("GET", f"{url}/metrics").data.decode()
            return [family for family in text_string_to_metric_families(page) if family.name.startswith(_PREFIX)]
        except (urllib3.exceptions.HTTPError, ValueError) as exc:
            log.debug("an engine's metrics aren't to be had", extra={"engine_url": url, "error": str(exc)})
            return []
