"""What one worker has counted since its last report: a second's worth, then it begins anew. Knows no sockets."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping

from textmill.contracts.loadtest import Clock, ErrorSample, NotSent, Phase, SlowRequest
from textmill_inference.loadtest.answer import TokenSink
from textmill_inference.loadtest.clocks import Exchange
from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.orders import Buckets, PhaseTally

MOST_SLOW = 20
MOST_SAMPLES_A_CLASS = 3
_DETAIL_CHARS = 500


class Tally:
    """Histograms are apart for requests that count and others. ``began`` is the stage's beginning."""

    def __init__(self, run: str, began: float) -> None:
        self._run, self._began = run, began
        self.counted = {clock: Histogram() for clock in Clock}
        self.others = {clock: Histogram() for clock in Clock}
        self.phases: dict[Phase, Counter[str]] = defaultdict(Counter)
        self.succeeded = 0
        self._tokens = self._reported_tokens = 0
        self.prompt_tokens = self.output_tokens = self.chunks = self.requests = self.own_limits = 0
        self.sources: Counter[str] = Counter()
        self.gaps: Counter[str] = Counter()
        self.server_times: dict[str, Histogram] = defaultdict(Histogram)
        self._slowest: list[tuple[float, int, SlowRequest]] = []
        self._samples: dict[str, list[ErrorSample]] = defaultdict(list)

    def sink(self, phase: Phase) -> TokenSink:
        return TokenSink(self._first_tokens, self.of(phase)[Clock.INTER_TOKEN].record)

    @property
    def tokens(self) -> int:
        """All output tokens that came so far. Those after a first one are counted by their gaps, on the hot path."""
        gaps = (histograms[Clock.INTER_TOKEN].samples for histograms in (self.counted, self.others))
        return self._tokens + sum(gaps)

    def of(self, phase: Phase) -> dict[Clock, Histogram]:
        return self.counted if phase is Phase.MEASURED else self.others

    def scheduled(self, phase: Phase) -> None:
        self.phases[phase]["scheduled"] += 1

    def sent(self, phase: Phase) -> None:
        self.phases[phase]["sent"] += 1

    def not_sent(self, phase: Phase, why: NotSent) -> None:
        self.phases[phase][f"not_sent {why}"] += 1

    def ended(self, exchange: Exchange, times: Mapping[str, float]) -> None:
        """Counts one exchange, and its clocks if it succeeded."""
        self.requests += 1
        self.chunks += exchange.chunks
        if exchange.sent:
            self._record(exchange, Clock.LATENESS, exchange.lateness_s)
        if exchange.connect_s:
            self._record(exchange, Clock.CONNECT, exchange.connect_s)
        if exchange.error is not None:
            self._failed(exchange)
        else:
            self._succeeded(exchange, times)

    def report(self) -> tuple[dict[Phase, PhaseTally], dict[Clock, Buckets], dict[Clock, Buckets], int]:
        """What came since the last report: counts, histograms of what counts, of the rest, and output tokens."""
        phases = {phase: _as_tally(counts) for phase, counts in self.phases.items()}
        self.phases.clear()
        tokens = self.tokens
        new = tokens - self._reported_tokens
        self._tokens = self._reported_tokens = tokens
        return phases, _taken(self.counted), _taken(self.others), new

    def slowest(self) -> tuple[SlowRequest, ...]:
        return tuple(slow for _, _, slow in sorted(self._slowest, reverse=True))

    def error_samples(self) -> tuple[ErrorSample, ...]:
        return tuple(sample for samples in self._samples.values() for sample in samples)

    def _first_tokens(self, number: int) -> None:
        self._tokens += number

    def _succeeded(self, exchange: Exchange, times: Mapping[str, float]) -> None:
        self.phases[exchange.phase]["succeeded"] += 1
        self.succeeded += 1
        e2e_s = exchange.ended - exchange.scheduled
        self._record(exchange, Clock.E2E_SCHEDULED, e2e_s)
        self._record(exchange, Clock.E2E_SENT, exchange.ended - exchange.sent)
        self._record(exchange, Clock.FIRST_BYTE, exchange.first_byte - exchange.sent)
        if exchange.first_token:
            self._record(exchange, Clock.TTFT_SCHEDULED, exchange.first_token - exchange.scheduled)
            self._record(exchange, Clock.TTFT_SENT, exchange.first_token - exchange.sent)
            if exchange.tokens > 1:
                between = (exchange.last_token - exchange.first_token) / (exchange.tokens - 1)
                self._record(exchange, Clock.PER_TOKEN, between)
        if exchange.phase is not Phase.MEASURED:
            return
        self.prompt_tokens += exchange.prompt_tokens
        self.output_tokens += exchange.tokens
        self.sources[exchange.source] += 1
        if exchange.tokens > 1 and exchange.first_token:
            self.gaps["tokens" if exchange.continuous else "chunks"] += 1
        for name, ms in times.items():
            self.server_times[name].record(int(ms * 1e3))
        self._keep_if_slow(exchange, e2e_s)

    def _failed(self, exchange: Exchange) -> None:
        error = exchange.error
        assert error is not None
        self.phases[exchange.phase][f"error {error}"] += 1
        self.own_limits += exchange.own_limit
        if len(samples := self._samples[error]) < MOST_SAMPLES_A_CLASS:
            detail = exchange.detail[:_DETAIL_CHARS]
            at_s = exchange.scheduled - self._began
            samples.append(ErrorSample(error=error, at_s=at_s, status=exchange.status, detail=detail))

    def _record(self, exchange: Exchange, clock: Clock, seconds: float) -> None:
        self.of(exchange.phase)[clock].record(int(seconds * 1e6))

    def _keep_if_slow(self, exchange: Exchange, e2e_s: float) -> None:
        if len(self._slowest) < MOST_SLOW:
            heapq.heappush(self._slowest, (e2e_s, exchange.number, exchange.as_slow(self._run, self._began)))
        elif e2e_s > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, (e2e_s, exchange.number, exchange.as_slow(self._run, self._began)))


def _as_tally(counts: Counter[str]) -> PhaseTally:
    def named(prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}

    return PhaseTally.model_validate(
        {
            "scheduled": counts["scheduled"],
            "sent": counts["sent"],
            "succeeded": counts["succeeded"],
            "not_sent": named("not_sent "),
            "errors": named("error "),
        }
    )


def _taken(histograms: Mapping[Clock, Histogram]) -> dict[Clock, Buckets]:
    return {clock: histogram.take() for clock, histogram in histograms.items() if histogram.counts}
