"""Percentiles of latencies, with the honesty to claim none that the sample can't support."""

from array import array

from textmill.contracts.serving import Percentiles

SAMPLES_FOR_P99 = 662
"""The fewest samples that support a 99th percentile, by MLPerf's early-stopping bound (inference rules, appendix)."""


class Latencies:
    """A growing sample of one quantity in milliseconds. 8 bytes a value."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, ms: float, times: int = 1) -> None:
        for _ in range(times):
            self._values.append(ms)

    def summary(self) -> Percentiles | None:
        """None without samples. Percentiles are by nearest rank: values that really occurred."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        return Percentiles(
            samples=len(ordered),
            mean=sum(ordered) / len(ordered),
            p50=_rank(ordered, 50),
            p90=_rank(ordered, 90),
            p99=_rank(ordered, 99) if len(ordered) >= SAMPLES_FOR_P99 else None,
        )


def _rank(ordered: list[float], percent: int) -> float:
    """The smallest value that at least ``percent`` % of the sample doesn't exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1]
