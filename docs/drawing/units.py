"""Figures with units, as Grafana shows them. Only the units that the dashboards use."""

import math
from collections.abc import Callable

from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, MultipleLocator


def shown(value: float, unit: str) -> str:
    """Raises ``LookupError`` for a unit that isn't known here."""
    if unit not in UNITS:
        raise LookupError(f"no way to show the unit {unit!r}; add it to UNITS in docs/drawing/units.py")
    return UNITS[unit](value)


def formatter(unit: str) -> FuncFormatter:
    return FuncFormatter(lambda value, _: shown(value, unit))


def locator(unit: str, top: float) -> Locator:
    """Where an axis that ends at ``top`` has its lines: about four, at whole minutes where there are minutes."""
    if unit == "s" and top > 90:
        return MultipleLocator(60 * max(1, round(top / 60 / 4)))
    if unit == "bytes" and top > 1:
        return MultipleLocator(2 ** (math.frexp(top)[1] - 2))
    return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=unit == "short" and top > 2)


def _figure(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """In the largest step that is no larger than the value; steps are from large to small."""
    factor, name = next(((f, n) for f, n in steps if float(_figure(abs(value) / f)) >= 1), steps[-1])
    return f"{_figure(value / factor)} {name}".rstrip()


def _short(value: float) -> str:
    return _scaled(value, ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, ""))) if abs(value) >= 1 else _figure(value)


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    return _scaled(value, ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")))


def _bytes(value: float) -> str:
    return _scaled(value, ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")))


UNITS: dict[str, Callable[[float], str]] = {
    "short": _short,
    "s": _seconds,
    "bytes": _bytes,
    "reqps": lambda value: f"{_figure(value)} req/s",
    "percentunit": lambda value: f"{_figure(100 * value)} %",
    "sci": lambda value: f"{value:.1e}" if value else "0",
}
