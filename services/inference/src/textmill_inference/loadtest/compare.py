"""Two targets under the same load: differences of quantiles, of throughput and of errors, with 95 % intervals.

Requests of one stage share its luck (the machine's, the queue's), so the stage is the unit: a pair is a stage of one
side and its neighbour of the other. Each resample draws pairs with replacement, then the requests of each stage anew
from its histogram (two-stage bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 3.8). Few pairs
make the spread of resamples too small, so the interval is widened by Student's t over the normal's quantile, and by
sqrt(k / (k - 1)). Order A B B A puts a steady drift of the machine on both sides alike.

Two runs that were made one after the other have no pairs: then requests alone are resampled, and the note says that
whatever else changed between the runs is in the difference too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textmill.contracts.loadreport import Comparison, Difference
from textmill.contracts.loadtest import Clock, Measured
from textmill_inference.loadtest.histogram import Histogram, merged, samples_needed, value_of
from textmill_inference.loadtest.intervals import CONFIDENCE, mean_interval, t_975, z_of
from textmill_inference.loadtest.levels import load_of

RESAMPLES = 2_000
_BLOCK = 250
"""Resamples at once: 250 times a few thousand different values are some 10 MB."""
_PERCENTS = (50.0, 90.0, 99.0)
_CLOCKS = {
    Clock.TTFT_SCHEDULED: "time to first token",
    Clock.INTER_TOKEN: "time between tokens",
    Clock.E2E_SCHEDULED: "end to end",
}
Floats = NDArray[np.float64]
Pair = tuple[Measured, Measured]


@dataclass(frozen=True)
class _Sample:
    """One stage's distribution: values in ms, ascending, and how often each occurred."""

    values: Floats
    counts: NDArray[np.int64]


def compare_pairs(pairs: Sequence[Pair], seed: int = 0) -> Comparison | None:
    """Of interleaved stages. Pairs with a stage that the generator spoiled are left out; None if none is left."""
    usable = [pair for pair in pairs if pair[0].valid and pair[1].valid]
    if not usable:
        return None
    notes = []
    if len(usable) < len(pairs):
        notes.append(f"{len(pairs) - len(usable)} of {len(pairs)} pairs were left out: the generator spoiled a stage")
    if len(usable) == 1:
        notes.append("one pair tells nothing of how stages vary; more rounds make these intervals honest")
    kind, load = load_of(usable[0][0].stage.load)
    rows = [*_latency_rows(usable, seed), *_rate_rows(usable)]
    return Comparison(load=load, kind=kind, interleaved=True, pairs=len(usable), rows=tuple(rows), notes=tuple(notes))


def compare_runs(a: Sequence[Measured], b: Sequence[Measured], seed: int = 0) -> list[Comparison]:
    """Of two runs, for each load that both have measured validly."""
    ours, theirs = _by_load(a), _by_load(b)
    note = "the runs were made at different times: whatever else changed between them is in the difference"
    found = []
    for kind, load in sorted(ours.keys() & theirs.keys()):
        left, right = ours[kind, load], theirs[kind, load]
        rows = [*_rows_between(left, right, seed), *_rate_rows(list(zip(left, right, strict=False)))]
        found.append(Comparison(load=load, kind=kind, interleaved=False, pairs=0, rows=tuple(rows), notes=(note,)))
    return found


def _by_load(stages: Sequence[Measured]) -> dict[tuple[str, float], list[Measured]]:
    found: dict[tuple[str, float], list[Measured]] = {}
    for stage in stages:
        if stage.valid:
            found.setdefault(load_of(stage.stage.load), []).append(stage)
    return found


# -- latencies ---------------------------------------------------------------------------------------------------------


def _latency_rows(pairs: Sequence[Pair], seed: int) -> list[Difference]:
    rows = []
    for clock, name in _CLOCKS.items():
        samples = [(_sample(a, clock), _sample(b, clock)) for a, b in pairs]
        whole = [(a, b) for a, b in samples if a is not None and b is not None]
        if whole:
            rows += _bootstrap(name, whole, np.random.default_rng(seed))
    return rows


def _rows_between(a: Sequence[Measured], b: Sequence[Measured], seed: int) -> list[Difference]:
    """The stages of each run as one sample."""
    rows = []
    for clock, name in _CLOCKS.items():
        left, right = _pooled(a, clock), _pooled(b, clock)
        if left is not None and right is not None:
            rows += _bootstrap(name, [(left, right)], np.random.default_rng(seed))
    return rows


def _bootstrap(name: str, pairs: Sequence[tuple[_Sample, _Sample]], rng: np.random.Generator) -> list[Difference]:
    """A row for each percentile that both sides' samples support."""
    sizes = [sum(int(pair[side].counts.sum()) for pair in pairs) for side in (0, 1)]
    percents = [p for p in _PERCENTS if min(sizes) >= samples_needed(p)]
    if not percents:
        return []
    k = len(pairs)
    grids = [_grid([pair[side] for pair in pairs]) for side in (0, 1)]
    chosen = rng.integers(0, k, (RESAMPLES, k))
    drawn = [_resampled(values, counts_kv, chosen, percents, rng) for values, counts_kv in grids]
    measured = [_quantiles(values, counts_kv.sum(axis=0)[None], percents)[0] for values, counts_kv in grids]
    rows = []
    for column, percent in enumerate(percents):
        a, b = float(measured[0][column]), float(measured[1][column])
        low, high = _widened(b - a, drawn[1][:, column] - drawn[0][:, column], k)
        rows.append(_difference(name, percent, "ms", a, b, low, high))
    return rows


def _resampled(
    values: Floats,
    counts_kv: NDArray[np.int64],
    chosen_rk: NDArray[np.int64],
    percents: Sequence[float],
    rng: np.random.Generator,
) -> Floats:
    """Quantiles of each resample, (r, percents): the chosen stages of each, their requests drawn anew."""
    sizes = counts_kv.sum(axis=1)
    shares_kv = counts_kv / sizes[:, None]
    found = []
    for block in np.array_split(chosen_rk, -(-len(chosen_rk) // _BLOCK)):
        counts_rv = sum(rng.multinomial(sizes[stage_r], shares_kv[stage_r]) for stage_r in block.T)
        found.append(_quantiles(values, np.asarray(counts_rv), percents))
    return np.concatenate(found)


def _widened(estimate: float, resampled: Floats, pairs: int) -> tuple[float, float]:
    """The percentile interval, stretched about the estimate for what few pairs hide."""
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = (float(v) for v in np.percentile(resampled, [tail, 100 - tail]))
    stretch = 1.0 if pairs < 2 else t_975(pairs - 1) / z_of(CONFIDENCE) * math.sqrt(pairs / (pairs - 1))
    return estimate - max(0.0, estimate - low) * stretch, estimate + max(0.0, high - estimate) * stretch


def _grid(samples: Sequence[_Sample]) -> tuple[Floats, NDArray[np.int64]]:
    """All values that occur, (v,), and how often in each sample, (k, v)."""
    values = np.unique(np.concatenate([sample.values for sample in samples]))
    counts_kv = np.zeros((len(samples), len(values)), dtype=np.int64)
    for row, sample in zip(counts_kv, samples, strict=True):
        row[np.searchsorted(values, sample.values)] = sample.counts
    return values, counts_kv


def _quantiles(values: Floats, counts_rv: NDArray[np.int64], percents: Sequence[float]) -> Floats:
    """By nearest rank, for each row of counts: (r, percents)."""
    below_rv = np.cumsum(counts_rv, axis=1)
    totals_r = below_rv[:, -1]
    columns = []
    for percent in percents:
        ranks_r = np.maximum(np.ceil(percent / 100 * totals_r - 1e-9), 1)
        columns.append(values[np.argmax(below_rv >= ranks_r[:, None], axis=1)])
    return np.stack(columns, axis=1)


def _sample(stage: Measured, clock: Clock) -> _Sample | None:
    latency = stage.latencies.get(clock)
    return None if latency is None else _of_histogram(Histogram.decode(latency.histogram))


def _pooled(stages: Sequence[Measured], clock: Clock) -> _Sample | None:
    found = [stage.latencies[clock] for stage in stages if clock in stage.latencies]
    if not found:
        return None
    return _of_histogram(merged(iter([Histogram.decode(latency.histogram) for latency in found])))


def _of_histogram(histogram: Histogram) -> _Sample:
    indexes = sorted(histogram.counts)
    return _Sample(
        np.array([value_of(index) / 1e3 for index in indexes]),
        np.array([histogram.counts[index] for index in indexes], dtype=np.int64),
    )


# -- what is one figure a stage ----------------------------------------------------------------------------------------


_RATES: tuple[tuple[str, str, Callable[[Measured], float]], ...] = (
    ("requests", "1/s", lambda m: m.requests_per_s),
    ("output tokens", "1/s", lambda m: m.output_tokens_per_s),
    ("failed requests", "share", lambda m: m.counted.error_share),
)


def _rate_rows(pairs: Sequence[Pair]) -> list[Difference]:
    """Student's interval for the mean difference of a pair; none from fewer than two."""
    rows = []
    for name, unit, figure in _RATES:
        left, right = [figure(a) for a, _ in pairs], [figure(b) for _, b in pairs]
        interval = mean_interval([b - a for a, b in zip(left, right, strict=True)])
        if interval is not None:
            rows.append(_difference(name, None, unit, sum(left) / len(left), sum(right) / len(right), *interval))
    return rows


def _difference(name: str, percent: float | None, unit: str, a: float, b: float, low: float, high: float) -> Difference:
    return Difference(
        name=name,
        percent=percent,
        unit=unit,
        a=a,
        b=b,
        difference=b - a,
        low=low,
        high=high,
        finding="b lower" if high < 0 else "b higher" if low > 0 else "no difference shown",
    )
