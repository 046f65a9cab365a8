"""What a worker knows of itself: its share of a core, how long it stood in line for it, how late its loop came."""

import asyncio
import time
from pathlib import Path
from time import perf_counter

from textmill_inference.loadtest.histogram import Histogram
from textmill_inference.loadtest.orders import Buckets

BEAT_S = 0.01
_SCHEDSTAT = Path("/proc/self/schedstat")
"""Linux: nanoseconds on a core, nanoseconds in line for one, number of turns; of the main thread."""


class Watch:
    """Looks every 10 ms how late it comes. A standstill counts by its length (see ``record_standstill``)."""

    def __init__(self) -> None:
        self._lag = Histogram()
        self._loop = asyncio.get_running_loop()
        self._due = perf_counter()
        self._read = (perf_counter(), time.process_time(), in_line_s())
        self._beat()

    def report(self) -> tuple[float, float | None, Buckets]:
        """Since the last report: share of a core, share of the time in line for one, and the loop's lag."""
        wall, cpu, line = self._read
        self._read = (perf_counter(), time.process_time(), in_line_s())
        passed = max(1e-6, self._read[0] - wall)
        starved = None if line is None or self._read[2] is None else (self._read[2] - line) / passed
        return (self._read[1] - cpu) / passed, starved, self._lag.take()

    def _beat(self) -> None:
        now = perf_counter()
        self._lag.record_standstill(int((now - self._due) * 1e6), int(BEAT_S * 1e6))
        self._due = now + BEAT_S
        self._loop.call_later(BEAT_S, self._beat)


def in_line_s() -> float | None:
    """None where the kernel doesn't tell."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
