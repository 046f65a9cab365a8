"""Whether a stage met its SLO, criterion by criterion. Knows no search and no clock."""

from textmill.contracts.loadreport import LimitResult, StageJudgement
from textmill.contracts.loadtest import Clock, Counts, Latency, Measured
from textmill.contracts.slo import Limit, Measure, Slo
from textmill_inference.loadtest.histogram import Histogram, samples_needed, value_of
from textmill_inference.loadtest.intervals import share_interval

_CLOCKS: dict[tuple[Measure, str], Clock] = {
    ("ttft", "scheduled"): Clock.TTFT_SCHEDULED,
    ("ttft", "sent"): Clock.TTFT_SENT,
    ("e2e", "scheduled"): Clock.E2E_SCHEDULED,
    ("e2e", "sent"): Clock.E2E_SENT,
    ("inter_token", "scheduled"): Clock.INTER_TOKEN,
    ("inter_token", "sent"): Clock.INTER_TOKEN,
    ("per_token", "scheduled"): Clock.PER_TOKEN,
    ("per_token", "sent"): Clock.PER_TOKEN,
}


def judge(slo: Slo, measured: Measured) -> StageJudgement:
    """Point estimates decide whether the stage met it; whether that proves anything is the search's affair."""
    counts = measured.counted
    limits = tuple(_judge_limit(limit, slo, measured) for limit in slo.limits)
    ended = counts.succeeded + counts.failed
    errors_met = counts.error_share <= slo.error_share
    goodput_low, goodput_high = _goodput(limits, counts)
    goodput_met = slo.goodput_share is None or goodput_low >= slo.goodput_share
    latencies_met = all(result.met for result in limits)
    judged = measured.valid and ended > 0
    return StageJudgement(
        met=errors_met and goodput_met and latencies_met if judged else None,
        evidence=_is_evidence(limits, errors_met=errors_met),
        limits=limits,
        error_share=counts.error_share,
        error_share_high=share_interval(counts.failed, ended)[1],
        errors_met=errors_met,
        goodput_low=goodput_low,
        goodput_high=goodput_high,
        goodput_met=goodput_met,
        why=_why(measured, limits, slo, errors_met=errors_met, goodput_met=goodput_met),
    )


def _judge_limit(limit: Limit, slo: Slo, measured: Measured) -> LimitResult:
    """Failed requests lie beyond the limit; not for times between tokens, of which a request has many or none."""
    latency = measured.latencies.get(_CLOCKS[limit.measure, slo.since])
    failed = 0 if limit.measure == "inter_token" else measured.counted.failed
    beyond, samples = _beyond(latency, limit.ms)
    of, needed = samples + failed, samples_needed(limit.percent)
    share = (beyond + failed) / of if of else 0.0
    low, high = share_interval(beyond + failed, of)
    return LimitResult(
        limit=limit,
        met=share <= 1 - limit.percent / 100 + 1e-12 if of else None,
        share=share,
        low=low,
        high=high,
        samples=of,
        needed=needed,
        enough=of >= needed,
    )


def _beyond(latency: Latency | None, ms: float) -> tuple[int, int]:
    """How many of how many samples took longer."""
    if latency is None:
        return 0, 0
    counts = Histogram.decode(latency.histogram).counts
    return sum(count for index, count in counts.items() if value_of(index) > ms * 1e3), latency.samples


def _goodput(limits: tuple[LimitResult, ...], counts: Counts) -> tuple[float, float]:
    """Bounds for the share of requests that succeeded within every limit on requests."""
    ended = counts.succeeded + counts.failed
    if not ended:
        return 0.0, 0.0
    # Failed ones are in every limit's share; here they are taken out, to count once.
    slow = [
        max(0.0, result.share * result.samples - counts.failed) / ended
        for result in limits
        if result.limit.measure != "inter_token"
    ]
    served = 1 - counts.error_share
    return max(0.0, served - sum(slow)), max(0.0, served - max(slow, default=0.0))


def _is_evidence(limits: tuple[LimitResult, ...], *, errors_met: bool) -> bool:
    """A miss that is plain on one criterion needs no more samples on the others."""
    if any(result.met is None for result in limits):
        return not errors_met
    missed = [result for result in limits if not result.met]
    if missed:
        return any(result.enough or result.low > 1 - result.limit.percent / 100 for result in missed)
    return all(result.enough for result in limits) or not errors_met


def _why(measured: Measured, limits: tuple[LimitResult, ...], slo: Slo, *, errors_met: bool, goodput_met: bool) -> str:
    """What decided it, for a person."""
    if measured.doubts:
        return "invalid: " + "; ".join(doubt.message for doubt in measured.doubts)
    if not measured.counted.succeeded + measured.counted.failed:
        return "no request ended in the counted part"
    found: list[str] = []
    if not errors_met:
        found.append(f"{measured.counted.error_share:.2%} of the requests failed, {slo.error_share:.2%} are allowed")
    for result in limits:
        if result.met is None:
            found.append(f"{result.limit.measure} was not measured; the target sends nothing to tell it by")
        elif not result.met:
            found.append(
                f"{result.limit}: {result.share:.2%} took longer, {1 - result.limit.percent / 100:.2%} are allowed"
            )
    if not goodput_met:
        found.append(f"fewer than {slo.goodput_share:.2%} of the requests were within every limit")
    thin = [result for result in limits if not result.enough and result.met is not None]
    if thin and not found:
        return "met, but " + "; ".join(
            f"{r.samples} samples are too few for p{r.limit.percent:g}, which takes {r.needed}" for r in thin
        )
    return "; ".join(found) or "all limits are met"
