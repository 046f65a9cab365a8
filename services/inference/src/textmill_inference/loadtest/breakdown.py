"""Where the mean time of a request went: generator, network and gateway, and the server's queue, prefill and decode.

Means are used because they add up, which percentiles don't. The client's clocks give the whole and the generator's
part; the rest comes from what the server tells of itself: of each request, where it does (vLLM's per-request metrics),
else from how its histograms' sums grew over the stage, and those are of all that it answered meanwhile.
"""

from collections.abc import Mapping

from textmill.contracts.loadreport import Breakdown, TimeShare
from textmill.contracts.loadtest import Clock, Latency, Measured
from textmill_inference.loadtest.series import Reading

_ENGINE = (
    ("queue", "vllm:request_queue_time_seconds"),
    ("prefill", "vllm:request_prefill_time_seconds"),
    ("decode", "vllm:request_decode_time_seconds"),
)
_E2E = "vllm:e2e_request_latency_seconds"
_GATEWAY = "textmill_gateway_request_seconds"
_MOST_OTHERS = 1.2
"""So many times our own requests, and the server's figures are rather somebody else's."""


def break_down(measured: Measured, growth: Mapping[str, Reading]) -> Breakdown | None:
    """``growth`` maps "engine" and "gateway" to how their metrics grew over the stage. None if nothing was answered."""
    whole = measured.latencies.get(Clock.E2E_SCHEDULED)
    sent = measured.latencies.get(Clock.E2E_SENT)
    if whole is None or sent is None:
        return None
    parts = [TimeShare(name="generator", mean_ms=whole.mean_ms - sent.mean_ms, source="due to sent, at the client")]
    inside = _from_requests(measured.server_times) or _from_histograms(growth.get("engine", {}))
    notes: list[str] = []
    gateway = _mean_ms(growth.get("gateway", {}), _GATEWAY)
    if inside:
        server_ms = sum(part.mean_ms for part in inside)
        parts += _around(
            sent.mean_ms, server_ms, gateway, has_front_end=any(p.name == "server front end" for p in inside)
        )
        parts += inside
    elif gateway is not None:
        parts.append(TimeShare(name="network", mean_ms=sent.mean_ms - gateway, source="client less gateway"))
        parts.append(TimeShare(name="server", mean_ms=gateway, source="the gateway's own clock"))
    else:
        parts.append(TimeShare(name="server", mean_ms=sent.mean_ms, source="all from sent to the last byte"))
        notes.append("the target tells nothing of its own times, so network and server are one part")
    notes += _notes_on(growth.get("engine", {}), measured)
    total = whole.mean_ms
    return Breakdown(
        total_ms=total,
        parts=tuple(parts),
        unexplained_ms=total - sum(part.mean_ms for part in parts),
        notes=tuple(notes),
    )


def _from_requests(times: Mapping[str, Latency]) -> list[TimeShare]:
    """vLLM's ``--enable-per-request-metrics``: its time to first token counts from when it was taken off the queue."""
    queue, first, rest = (times.get(f"{name}_ms") for name in ("queue_time", "time_to_first_token", "generation_time"))
    if queue is None or first is None or rest is None:
        return []
    source = "the server, of each request"
    return [
        TimeShare(name="queue", mean_ms=queue.mean_ms, source=source),
        TimeShare(name="prefill", mean_ms=first.mean_ms, source=source),
        TimeShare(name="decode", mean_ms=rest.mean_ms, source=source),
    ]


def _from_histograms(growth: Reading) -> list[TimeShare]:
    found = {name: _mean_ms(growth, metric) for name, metric in _ENGINE}
    if any(mean is None for mean in found.values()):
        return []
    source = "vLLM's histograms over the stage"
    parts = [TimeShare(name=name, mean_ms=mean, source=source) for name, mean in found.items()]
    whole = _mean_ms(growth, _E2E)
    if whole is not None:
        front = whole - sum(part.mean_ms for part in parts)
        parts.insert(0, TimeShare(name="server front end", mean_ms=front, source=f"{source}: the rest of end to end"))
    return parts


def _around(sent_ms: float, server_ms: float, gateway_ms: float | None, *, has_front_end: bool) -> list[TimeShare]:
    """What lies between the client's last byte and the server's own account."""
    beyond = "" if has_front_end else " (and the server's front end)"
    if gateway_ms is None:
        return [
            TimeShare(name="network and gateway", mean_ms=sent_ms - server_ms, source=f"client less server{beyond}")
        ]
    return [
        TimeShare(name="network", mean_ms=sent_ms - gateway_ms, source="client less gateway"),
        TimeShare(name="gateway", mean_ms=gateway_ms - server_ms, source=f"gateway less server{beyond}"),
    ]


def _mean_ms(growth: Reading, metric: str) -> float | None:
    count = growth.get(f"{metric}_count", 0.0)
    return growth[f"{metric}_sum"] / count * 1e3 if count > 0 and f"{metric}_sum" in growth else None


def _notes_on(engine: Reading, measured: Measured) -> list[str]:
    served = engine.get(f"{_E2E}_count", 0.0)
    ours = sum(counts.succeeded for counts in measured.counts.values())
    if ours and served > _MOST_OTHERS * ours:
        return [
            f"the server answered {served:.0f} requests in this stage and {ours} were ours: "
            "its means are mostly of others' requests"
        ]
    return []
