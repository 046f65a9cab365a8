"""Intervals for shares and means. Plain mathematics; knows no load test. Those of percentiles are in histogram.py.

All hold for independent samples. Requests of one stage are not quite that (they wait in the same queue), so the
capacity search doesn't rest on them but on repeated stages, and compare.py resamples whole stages.
"""

import math
from statistics import NormalDist

CONFIDENCE = 0.95
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""


def z_of(confidence: float) -> float:
    """How many standard errors to each side a two-sided normal interval takes."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def t_975(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval. From 31 degrees on that of 30, from 121 on the normal's."""
    if degrees < 1:
        raise ValueError(f"an interval takes at least 1 degree of freedom, not {degrees}")
    return _T_975[min(degrees, 30) - 1] if degrees <= 120 else z_of(CONFIDENCE)


def share_interval(hits: float, of: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval for a share (JASA 22, 1927), which holds for no hits and for few. (0, 1) of nothing."""
    if of <= 0:
        return 0.0, 1.0
    z, share = z_of(confidence), hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Student's 95 % interval for the mean; None of fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_975(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half
