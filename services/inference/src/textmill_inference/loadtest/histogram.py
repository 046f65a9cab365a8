"""Histograms of microseconds that merge exactly, and percentiles with intervals that claim no more than they know.

The buckets are HdrHistogram's for three significant digits (values from 1 us to 1 h), so a value is off by at most
0.05 %, and what is encoded here other HdrHistogram tools read. Only buckets in use are held: some 16 bytes a value
that differs. hdrhistogram from PyPI would do, but it needs a setuptools that vLLM forbids.
"""

import base64
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist

from textmill.contracts.loadtest import Latency, Quantile

DIGITS = 3
HIGHEST_US = 3_600_000_000
PERCENTS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.95
_SUB_BITS = 11  # 2,048 sub-buckets hold three digits
_HALF = 1 << (_SUB_BITS - 1)
_COOKIE_V2 = 0x1C849303 | 0x10
_COOKIE_V2_COMPRESSED = 0x1C849304 | 0x10
_HEADER = struct.Struct(">iiiiqqd")
_ENOUGH_FOR_NORMAL = 1_000.0


class Histogram:
    """Counts by bucket. Recording costs 0.4 us."""

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def record(self, us: int, times: int = 1) -> None:
        """What is negative counts as 0, what is longer than an hour as an hour."""
        if us >= 2048:
            if us > HIGHEST_US:
                us = HIGHEST_US
            shift = us.bit_length() - _SUB_BITS
            us = (shift << 10) + (us >> shift)
        elif us < 0:
            us = 0
        self.counts[us] = self.counts.get(us, 0) + times

    def record_standstill(self, us: int, every_us: int) -> None:
        """A delay seen by something that looks every ``every_us``: with the looks it missed meanwhile.

        Gil Tene's correction for coordinated omission: a standstill counts by its length, not as one sample.
        """
        while us > 0:
            self.record(us)
            us -= every_us

    def merge(self, other: "Histogram | Mapping[int, int]") -> None:
        counts = other.counts if isinstance(other, Histogram) else other
        for index, count in counts.items():
            self.counts[index] = self.counts.get(index, 0) + count

    def take(self) -> dict[int, int]:
        """The counts so far; the histogram is empty after."""
        counts, self.counts = self.counts, {}
        return counts

    @property
    def samples(self) -> int:
        return sum(self.counts.values())

    @property
    def mean_us(self) -> float:
        return sum(value_of(index) * count for index, count in self.counts.items()) / max(1, self.samples)

    def values_at(self, ranks: Sequence[int]) -> list[float]:
        """The values of these ranks in us, each from 1 to ``samples``; ranks must be in order."""
        found: list[float] = []
        wanted = iter(ranks)
        rank = next(wanted, None)
        below = 0
        for index in sorted(self.counts):
            below += self.counts[index]
            while rank is not None and rank <= below:
                found.append(value_of(index))
                rank = next(wanted, None)
        return found

    def percentile(self, percent: float) -> float | None:
        """In us, by nearest rank, for any sample: for plots, where nothing is claimed."""
        samples = self.samples
        return self.values_at([_rank(percent, samples)])[0] if samples else None

    def quantile(self, percent: float) -> Quantile | None:
        """With its interval; None if the sample is too small to support it."""
        samples = self.samples
        if samples < samples_needed(percent):
            return None
        low, high = interval_ranks(percent, samples)
        values = self.values_at([low, _rank(percent, samples), high])
        low_ms, ms, high_ms = (value / 1e3 for value in values)
        return Quantile(percent=percent, ms=ms, low_ms=low_ms, high_ms=high_ms)

    def latency(self) -> Latency | None:
        """None without samples."""
        if not self.counts:
            return None
        return Latency(
            samples=self.samples,
            mean_ms=self.mean_us / 1e3,
            min_ms=value_of(min(self.counts)) / 1e3,
            max_ms=value_of(max(self.counts)) / 1e3,
            quantiles=tuple(q for q in map(self.quantile, PERCENTS) if q is not None),
            histogram=self.encode(),
        )

    def encode(self) -> str:
        """HdrHistogram's V2 format, compressed, in base64."""
        payload = b"".join(_zigzag(number) for number in _runs(self.counts))
        header = _HEADER.pack(_COOKIE_V2, len(payload), 0, DIGITS, 1, HIGHEST_US, 1.0)
        packed = zlib.compress(header + payload)
        return base64.b64encode(struct.pack(">ii", _COOKIE_V2_COMPRESSED, len(packed)) + packed).decode()

    @classmethod
    def decode(cls, text: str) -> "Histogram":
        """Raises ``ValueError`` for what isn't such a histogram with three digits from 1 us on."""
        raw = base64.b64decode(text)
        if len(raw) < 8 or struct.unpack(">i", raw[:4])[0] != _COOKIE_V2_COMPRESSED:
            raise ValueError("not a compressed HdrHistogram of version 2; encode it with Histogram.encode")
        try:
            plain = zlib.decompress(raw[8:])
        except zlib.error as exc:
            raise ValueError(f"a broken HdrHistogram: {exc}") from exc
        if len(plain) < _HEADER.size:
            raise ValueError("a broken HdrHistogram: its header is cut off")
        cookie, size, offset, digits, lowest, _, _ = _HEADER.unpack_from(plain)
        if (cookie, offset, digits, lowest) != (_COOKIE_V2, 0, DIGITS, 1):
            raise ValueError(f"an HdrHistogram of {digits} digits from {lowest} on; needed: {DIGITS} digits from 1 on")
        return cls(_read_runs(plain[_HEADER.size : _HEADER.size + size]))


def value_of(index: int) -> float:
    """The middle of a bucket, in us."""
    if index < 2 * _HALF:
        return float(index)
    shift = (index >> 10) - 1
    return float(((index - (shift << 10)) << shift) + (1 << shift) / 2)


def samples_needed(percent: float) -> int:
    """The fewest samples that support a percentile: with 99 % confidence two of them lie beyond it.

    For p99 that is MLPerf's 662 (inference rules, early stopping), for p50 11, for p90 64, for p99.9 6,636.
    """
    tail = min(percent, 100.0 - percent) / 100.0
    low, high = 2, math.ceil(10 / tail)
    while low < high:
        middle = (low + high) // 2
        few = (1 - tail) ** middle + middle * tail * (1 - tail) ** (middle - 1)
        low, high = (low, middle) if few <= 0.01 else (middle + 1, high)
    return low


def interval_ranks(percent: float, samples: int) -> tuple[int, int]:
    """The ranks whose values hold the true percentile with at least 95 % confidence, whatever the distribution.

    How many of the samples lie below it is binomial (e.g. Hahn and Meeker, Statistical Intervals, 5.2).
    """
    share, miss = percent / 100.0, (1 - CONFIDENCE) / 2
    low, high = _binomial_quantile(miss, samples, share), _binomial_quantile(1 - miss, samples, share)
    return max(1, low), min(samples, high + 1)


def _binomial_quantile(level: float, n: int, p: float) -> int:
    """The least k with P(X <= k) >= level."""
    variance = n * p * (1 - p)
    if variance > _ENOUGH_FOR_NORMAL:
        return round(n * p + NormalDist().inv_cdf(level) * math.sqrt(variance))
    below, odds = 0.0, p / (1 - p)
    # Far from the middle nothing adds up; there the first term would underflow.
    k = max(0, math.floor(n * p - 12 * math.sqrt(variance) - 12))
    term = math.exp(
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log(1 - p)
    )
    while k < n:
        below += term
        if below >= level:
            return k
        term *= (n - k) / (k + 1) * odds
        k += 1
    return n


def _rank(percent: float, samples: int) -> int:
    """Nearest rank: the first that at least ``percent`` % of the samples don't exceed."""
    return min(samples, max(1, math.ceil(percent * samples / 100 - 1e-9)))


def _runs(counts: Mapping[int, int]) -> Iterator[int]:
    """Counts in order of their buckets; a negative number stands for so many empty ones."""
    last = -1
    for index in sorted(counts):
        if index - last > 1:
            yield last + 1 - index
        yield counts[index]
        last = index


def _zigzag(number: int) -> bytes:
    """ZigZag LEB128: seven bits a byte, small numbers of either sign short."""
    value = number * 2 if number >= 0 else -number * 2 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_runs(payload: bytes) -> dict[int, int]:
    counts: dict[int, int] = {}
    index = value = shift = 0
    for byte in payload:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            continue
        number = value >> 1 if value & 1 == 0 else -(value + 1 >> 1)
        if number < 0:
            index -= number
        else:
            if number:
                counts[index] = number
            index += 1
        value = shift = 0
    return counts


def merged(histograms: Iterator[Histogram]) -> Histogram:
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole
