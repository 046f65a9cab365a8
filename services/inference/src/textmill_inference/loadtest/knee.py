"""The knee: the load from which more of it buys no more throughput.

Throughput X of a closed system with N requests in flight has two asymptotes, X <= N / R and X <= X_max: alone a request
takes R, and the busiest part serves X_max. They cross at N* = R x X_max, which operational analysis calls the
saturation point (Denning and Buzen, "The operational analysis of queueing network models", ACM Computing Surveys 10(3),
1978). For arrivals at a rate the first asymptote is X = rate. So the knee is found by fitting X = min(a x load, c), by
least squares of relative errors, and is c / a. Unlike methods that look for the largest bend between the first and the
last point (Kneedle and its kin), it doesn't move when the sweep goes on past the knee.
"""

from collections.abc import Sequence
from statistics import median

from textmill.contracts.loadreport import Knee

_FLAT = 1.15
"""Past the knee throughput grows by at most so much in all, or the sweep hasn't reached it."""
_MUST_BEND = 0.90
"""A plateau this much under the straight line at the last load is a bend; less may be noise."""


def find_knee(loads: Sequence[float], throughputs: Sequence[float]) -> Knee | None:
    """None when fewer than three loads bore anything, or throughput still grows at the highest: sweep further then."""
    points = sorted((x, y) for x, y in zip(loads, throughputs, strict=True) if x > 0 and y > 0)
    if len({x for x, _ in points}) < 3:
        return None
    fits = [_fit(points, split) for split in range(1, len(points))]
    error, slope, plateau, split = min(fits)
    if plateau > _MUST_BEND * slope * points[-1][0] or _still_grows(points, plateau / slope):
        return None
    return Knee(
        load=plateau / slope,
        throughput=plateau,
        per_load=slope,
        relative_error=(error / len(points)) ** 0.5,
        before=split,
        beyond=len(points) - split,
    )


def _still_grows(points: Sequence[tuple[float, float]], knee: float) -> bool:
    """From the first load past the knee to the last, by the medians of the stages at each. One load is no plateau."""
    loads = sorted({x for x, _ in points if x >= knee * (1 - 1e-9)})
    if len(loads) < 2:
        return True
    first, last = (median(y for x, y in points if x == load) for load in (loads[0], loads[-1]))
    return last > _FLAT * first


def _fit(points: Sequence[tuple[float, float]], split: int) -> tuple[float, float, float, int]:
    """Squared relative error, slope and plateau when the first ``split`` points are taken to lie on the slope.

    Each closed form minimizes the sum of (1 - model/y)^2 over its points.
    """
    rising, flat = points[:split], points[split:]
    slope = sum(x / y for x, y in rising) / sum((x / y) ** 2 for x, y in rising)
    plateau = sum(1 / y for _, y in flat) / sum((1 / y) ** 2 for _, y in flat)
    error = sum((1 - min(slope * x, plateau) / y) ** 2 for x, y in points)
    return error, slope, plateau, split
