"""From what the generator measured to a report's figures. Plain arithmetic."""

from textmill.contracts.capacity import LoadKind
from textmill.contracts.load import Bursts, ClosedLoop, ConstantRate, Load, Poisson, Ramp
from textmill.contracts.loadreport import Breakdown, ErrorBudget, Latencies, Level, Purpose, Side, StageJudgement
from textmill.contracts.loadtest import Clock, Latency, Measured, Phase


def load_of(load: Load) -> tuple[LoadKind, float]:
    """A load's kind and size: requests in flight, or mean requests per second (0 for a trace, until it was played)."""
    match load:
        case ClosedLoop():
            return "concurrency", float(load.concurrency)
        case ConstantRate() | Poisson():
            return "rate", load.rate_per_s
        case Bursts():
            return "rate", load.rate_per_s + load.size / load.period_s
        case Ramp():
            return "rate", load.to_per_s
        case _:
            return "rate", 0.0


def figures(latency: Latency | None) -> Latencies | None:
    if latency is None:
        return None
    at = {q.percent: q.ms for q in latency.quantiles}
    return Latencies(
        samples=latency.samples,
        mean=latency.mean_ms,
        max=latency.max_ms,
        p50=at.get(50),
        p90=at.get(90),
        p99=at.get(99),
        quantiles=latency.quantiles,
    )


def in_flight(measured: Measured) -> float:
    """Mean over the counted seconds."""
    counted = [second.in_flight for second in measured.series if second.phase == Phase.MEASURED]
    return sum(counted) / len(counted) if counted else 0.0


def level_of(
    measured: Measured,
    *,
    number: int,
    side: Side,
    purpose: Purpose,
    began_s: float,
    judgement: StageJudgement | None,
    breakdown: Breakdown | None,
) -> Level:
    """``began_s`` is when the stage began, in seconds of the run."""
    arrivals, counts = measured.stage.load, measured.counted
    kind, load = load_of(arrivals)
    latencies = {clock: figures(latency) for clock, latency in measured.latencies.items()}
    return Level(
        number=number,
        side=side,
        purpose=purpose,
        kind=kind,
        load=load or counts.scheduled / max(measured.seconds, 1e-9),
        arrivals=arrivals,
        concurrency=arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None,
        started_at=measured.started_at,
        began_s=began_s,
        seconds=measured.seconds,
        valid=measured.valid,
        doubts=measured.doubts,
        requests=counts.sent,
        succeeded=counts.succeeded,
        errors=counts.errors,
        not_sent=sum(counts.not_sent.values()),
        requests_per_s=measured.requests_per_s,
        output_tokens_per_s=measured.output_tokens_per_s,
        prompt_tokens=measured.tokens.prompt,
        output_tokens=measured.tokens.output,
        in_flight=in_flight(measured),
        ttft_ms=latencies.get(Clock.TTFT_SCHEDULED),
        itl_ms=latencies.get(Clock.INTER_TOKEN),
        e2e_ms=latencies.get(Clock.E2E_SCHEDULED),
        ttft_sent_ms=latencies.get(Clock.TTFT_SENT),
        e2e_sent_ms=latencies.get(Clock.E2E_SENT),
        per_token_ms=latencies.get(Clock.PER_TOKEN),
        lateness_ms=latencies.get(Clock.LATENESS),
        server_ms={name: found for name, one in measured.server_times.items() if (found := figures(one)) is not None},
        judgement=judgement,
        breakdown=breakdown,
        error_samples=measured.error_samples[:5],
        notes=tuple(measured.notes),
    )


def error_budget(stages: list[Measured]) -> ErrorBudget:
    """The worst over the valid stages: what stands in the report is off by no more than that."""
    valid = [stage for stage in stages if stage.valid]
    calibrations = [c for stage in valid for c in stage.calibrations]
    lateness = [
        found.quantiles[-1].ms
        for stage in valid
        if (found := stage.latencies.get(Clock.LATENESS)) is not None and found.quantiles
    ]
    return ErrorBudget(
        added_ttft_p50_ms=max((c.added_ttft_p50_ms for c in calibrations), default=None),
        added_ttft_p99_ms=max((c.added_ttft_p99_ms for c in calibrations), default=None),
        added_inter_token_p99_ms=max((c.added_inter_token_p99_ms for c in calibrations), default=None),
        lateness_p99_ms=max(lateness, default=None),
        worst_cpu=max((health.cpu_share for stage in valid for health in stage.health), default=0.0),
        valid_stages=len(valid),
        invalid_stages=len(stages) - len(valid),
    )
