"""When requests are due: arrival times of every kind of open load, from the load alone.

Knows no clock: times are seconds since the stage's beginning. All workers draw the same arrivals and each takes its
own, so that together they send just the load's, whatever their number.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator

from textmill.contracts.load import Bursts, ClosedLoop, ConstantRate, Load, Poisson, Ramp, Trace, TraceEntry

Arrival = tuple[float, TraceEntry | None]


def arrivals(load: Load, entries: Iterable[TraceEntry] = ()) -> Iterator[Arrival]:
    """All arrivals in order, without end but for a trace's. ``entries`` are the trace's."""
    match load:
        case ConstantRate():
            return _timed(_constant(load.rate_per_s))
        case Poisson():
            return _timed(_poisson(load))
        case Bursts():
            return _timed(heapq.merge(_bursts(load), _constant(load.rate_per_s) if load.rate_per_s else ()))
        case Ramp():
            return _timed(_ramp(load))
        case Trace():
            return ((entry.at_s / load.speed, entry) for entry in entries)
        case ClosedLoop():
            raise ValueError("a closed loop has no arrivals: what it sends depends on the answers")


def share(every: Iterator[Arrival], worker: int, workers: int) -> Iterator[Arrival]:
    """Of all arrivals those of one worker, of which ``worker`` counts from 0."""
    return itertools.islice(every, worker, None, workers)


def part(whole: int, worker: int, workers: int) -> int:
    """Of ``whole`` things those of one worker: all parts sum up to it and differ by at most one."""
    return whole // workers + (1 if worker < whole % workers else 0)


def mean_rate(load: Load, seconds: float) -> float:
    """Requests a second of an open load, at its busiest where it changes. A trace's isn't known from the load: 0."""
    match load:
        case ConstantRate() | Poisson():
            return load.rate_per_s
        case Bursts():
            return load.rate_per_s + load.size / min(load.period_s, seconds)
        case Ramp():
            return max(load.from_per_s, load.to_per_s)
        case _:
            return 0.0


def _timed(times: Iterable[float]) -> Iterator[Arrival]:
    return ((at_s, None) for at_s in times)


def _constant(rate_per_s: float) -> Iterator[float]:
    return (number / rate_per_s for number in itertools.count())


def _poisson(load: Poisson) -> Iterator[float]:
    draw = random.Random(load.seed)
    at_s = 0.0
    while True:
        at_s += draw.expovariate(load.rate_per_s)
        yield at_s


def _bursts(load: Bursts) -> Iterator[float]:
    for number in itertools.count():
        yield from itertools.repeat(number * load.period_s, load.size)


def _ramp(load: Ramp) -> Iterator[float]:
    """The number of arrivals by t is from*t + slope*t*t/2 while it ramps: the t at which it is 0, 1, 2 ..."""
    slope = (load.to_per_s - load.from_per_s) / load.seconds
    in_ramp = (load.from_per_s + load.to_per_s) / 2 * load.seconds
    for number in itertools.count():
        if number > in_ramp:
            yield load.seconds + (number - in_ramp) / load.to_per_s
        elif slope == 0:
            yield number / load.from_per_s
        else:
            root = math.sqrt(max(0.0, load.from_per_s**2 + 2 * slope * number))
            # The other form of the quadratic's solution, which holds its digits when the slope is slight.
            yield 2 * number / (load.from_per_s + root) if number else 0.0
