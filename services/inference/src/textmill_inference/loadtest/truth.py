"""What a server of known times really did, by its own clock: the measure that the generator's figures are held to."""

import json
import urllib.request

from textmill.contracts.base import Contract
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.orders import Buckets


class TruthRead(Contract):
    """Histograms by bucket, in us. ``ttft`` and ``e2e`` count from when a request was read. ``late`` is how much later
    than planned each token was written: the server's own doing, in ``ttft`` and ``inter_token`` already."""

    requests: int
    tokens: int
    ttft: Buckets
    inter_token: Buckets
    e2e: Buckets
    late: Buckets


class Truth:
    """Gathers one server's times, in seconds."""

    def __init__(self) -> None:
        self._requests = self._tokens = 0
        self._ttft, self._inter_token, self._e2e, self._late = Histogram(), Histogram(), Histogram(), Histogram()

    def first_token(self, seconds: float) -> None:
        self._tokens += 1
        self._ttft.record(int(seconds * 1e6))

    def gap(self, seconds: float) -> None:
        self._tokens += 1
        self._inter_token.record(int(seconds * 1e6))

    def ended(self, seconds: float) -> None:
        self._requests += 1
        self._e2e.record(int(seconds * 1e6))

    def late(self, seconds: float) -> None:
        self._late.record(int(seconds * 1e6))

    def read(self) -> TruthRead:
        return TruthRead(
            requests=self._requests,
            tokens=self._tokens,
            ttft=self._ttft.counts,
            inter_token=self._inter_token.counts,
            e2e=self._e2e.counts,
            late=self._late.counts,
        )


def read_truth(url: str, reset: bool = False) -> TruthRead:
    """Asks a null server at ``url``; with ``reset`` it begins anew."""
    with urllib.request.urlopen(f"{url}/truth", timeout=10) as response:
        truth = TruthRead.model_validate(json.load(response))
    if reset:
        urllib.request.urlopen(f"{url}/truth/reset", timeout=10).close()
    return truth
