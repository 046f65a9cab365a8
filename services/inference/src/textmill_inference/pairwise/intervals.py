"""Wilson's interval for a share (E. B. Wilson 1927, JASA 22): holds for few samples and near 0 and 1."""

import math

from textmill.contracts.pairwise import Interval

Z = 1.959964
"""The normal quantile of 97.5 %."""


def wilson(successes: float, trials: int) -> Interval:
    """95 %. ``successes`` may have halves, for ties. ``trials`` is at least 1."""
    share, square = successes / trials, Z * Z
    middle = share + square / (2 * trials)
    reach = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return Interval(low=max(0.0, (middle - reach) / scale), high=min(1.0, (middle + reach) / scale))
