"""Drawings for a page, as inline SVG. Colours come from the page's style sheet, so they follow dark and light.

Knows lines, dots, bars and axes; nothing of load tests. A drawing is 420 units wide, so that 12-unit letters can still
be read on a phone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

WIDTH, HEIGHT = 420.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 10.0, 38.0
Mark = Literal["dot", "cross", "ring"]


@dataclass(frozen=True)
class Dot:
    """``low`` and ``high`` are an interval's ends, drawn as a whisker; ``note`` is shown when pointed at."""

    x: float
    y: float
    note: str = ""
    low: float | None = None
    high: float | None = None
    mark: Mark = "dot"


@dataclass(frozen=True)
class Line:
    """``colour`` is 1 to 6. Without ``joined`` only the dots are drawn, without ``dotted`` only the line.

    The line is broken where the next x is more than ``gap`` away, or behind.
    """

    label: str
    dots: Sequence[Dot]
    colour: int = 1
    joined: bool = True
    dotted: bool = True
    gap: float = math.inf


@dataclass(frozen=True)
class Rule:
    """A straight line across: a limit (``y``) or a place (``x``)."""

    label: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Axis:
    label: str
    log: bool = False


@dataclass(frozen=True)
class Chart:
    x: Axis
    y: Axis
    lines: Sequence[Line]
    rules: Sequence[Rule] = ()
    spans: Sequence[tuple[float, float]] = ()
    """Stretches of x that are shaded."""


@dataclass
class _Scale:
    """From values to units of the drawing."""

    low: float
    high: float
    at_low: float
    at_high: float
    log: bool
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        if self.log:
            value, low, high = (math.log(max(v, 1e-9)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        share = (value - low) / (high - low) if high > low else 0.5
        return self.at_low + min(1.02, max(-0.02, share)) * (self.at_high - self.at_low)


def draw(chart: Chart) -> str:
    """An empty string when there is nothing to draw."""
    dots = [dot for line in chart.lines for dot in line.dots]
    if not dots:
        return ""
    xs = [dot.x for dot in dots] + [rule.x for rule in chart.rules if rule.x is not None]
    ys = [dot.y for dot in dots] + [rule.y for rule in chart.rules if rule.y is not None]
    x = _scale(xs, chart.x.log, _LEFT, WIDTH - _RIGHT, from_zero=False)
    y = _scale(ys, chart.y.log, HEIGHT - _BOTTOM, _TOP, from_zero=True)
    body = [*_spans(chart, x), *_axes(chart, x, y), *_rules(chart, x, y)]
    for line in chart.lines:
        body += _line(line, x, y)
    label = f"{chart.y.label} against {chart.x.label}"
    return _svg(body, label) + _legend([(line.label, line.colour) for line in chart.lines if line.label])


def _scale(values: Sequence[float], log: bool, at_low: float, at_high: float, *, from_zero: bool) -> _Scale:
    if log:
        positive = [v for v in values if v > 0] or [1.0]
        low, high = min(positive), max(positive)
        if high / low < 1.5:
            low, high = low / 1.3, high * 1.3
        scale = _Scale(low / 1.08, high * 1.08, at_low, at_high, True)
        scale.ticks = _log_ticks(scale.low, scale.high)
        return scale
    low, high = (min(0.0, min(values)) if from_zero else min(values)), max(values)
    if high <= low:
        high = low + 1.0
    scale = _Scale(low, high + (high - low) * 0.05, at_low, at_high, False)
    scale.ticks = _ticks(scale.low, scale.high)
    return scale


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = min((s * power for s in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten while these are few, else the powers; in a narrow range, round numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(found) <= 8:
            break
    return found if len(found) > 2 else _ticks(low, high)


def number(value: float) -> str:
    """Short: 1.2k, 350, 0.05."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if size == 1e3 else 1):
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _axes(chart: Chart, x: _Scale, y: _Scale) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for tick in y.ticks:
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        yield f'<text x="{_LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
    for tick in x.ticks:
        yield f'<text x="{x(tick):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{number(tick)}</text>'
        yield f'<line class="tick" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom}" y2="{bottom + 3}"/>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    yield f'<text class="name" x="{middle_x}" y="{HEIGHT - 5}" text-anchor="middle">{escape(chart.x.label)}</text>'
    turned = f'transform="rotate(-90 11 {middle_y})"'
    yield f'<text class="name" x="11" y="{middle_y}" text-anchor="middle" {turned}>{escape(chart.y.label)}</text>'


def _spans(chart: Chart, x: _Scale) -> Iterable[str]:
    for began, ended in chart.spans:
        width, height = max(0.5, x(ended) - x(began)), HEIGHT - _TOP - _BOTTOM
        yield f'<rect class="span" x="{x(began):.1f}" y="{_TOP}" width="{width:.1f}" height="{height}"/>'


def _rules(chart: Chart, x: _Scale, y: _Scale) -> Iterable[str]:
    for rule in chart.rules:
        if rule.y is not None:
            at = y(rule.y)
            yield f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            yield f'<text class="rule" x="{_LEFT + 4}" y="{at - 4:.1f}">{escape(rule.label)}</text>'
        if rule.x is not None:
            at = x(rule.x)
            anchor, shift = ("end", -4) if at > WIDTH * 0.6 else ("start", 4)
            yield f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            yield (
                f'<text class="rule" x="{at + shift:.1f}" y="{_TOP + 9}" text-anchor="{anchor}">'
                f"{escape(rule.label)}</text>"
            )


def _line(line: Line, x: _Scale, y: _Scale) -> Iterable[str]:
    css = f"c{line.colour}"
    for stretch in _stretches(line) if line.joined else ():
        points = " ".join(f"{x(dot.x):.1f},{y(dot.y):.1f}" for dot in stretch)
        yield f'<polyline class="{css}" points="{points}"/>'
    if not line.dotted:
        return
    for dot in line.dots:
        if dot.low is not None and dot.high is not None:
            at = x(dot.x)
            yield f'<line class="{css}" x1="{at:.1f}" x2="{at:.1f}" y1="{y(dot.low):.1f}" y2="{y(dot.high):.1f}"/>'
        yield _MARKS[dot.mark](css, x(dot.x), y(dot.y), f"<title>{escape(dot.note)}</title>" if dot.note else "")


def _stretches(line: Line) -> list[list[Dot]]:
    found: list[list[Dot]] = []
    for dot in line.dots:
        if found and 0 <= dot.x - found[-1][-1].x <= line.gap:
            found[-1].append(dot)
        else:
            found.append([dot])
    return [stretch for stretch in found if len(stretch) > 1]


def _cross(css: str, x: float, y: float, title: str) -> str:
    return f'<path class="{css}" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6">{title}</path>'


_MARKS: dict[Mark, Callable[[str, float, float, str], str]] = {
    "dot": lambda css, x, y, title: f'<circle class="{css} full" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>',
    "ring": lambda css, x, y, title: f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>',
    "cross": _cross,
}


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of parts: (label, size, colour 1 to 6)."""

    label: str
    parts: Sequence[tuple[str, float, int]]


def stacked(bars: Sequence[Bar], label: str, unit: str) -> str:
    """Bars one below the other on one scale. Parts below 0 are left out of the drawing."""
    longest = max((sum(max(0.0, size) for _, size, _ in bar.parts) for bar in bars), default=0.0)
    if longest <= 0:
        return ""
    row, left = 24.0, 78.0
    body = []
    for i, bar in enumerate(bars):
        body.append(f'<text x="{left - 6}" y="{i * row + 16:.1f}" text-anchor="end">{escape(bar.label)}</text>')
        at = left
        for name, size, colour in bar.parts:
            width = max(0.0, size) / longest * (WIDTH - left - 52)
            title = f"<title>{escape(name)}: {number(size)} {escape(unit)}</title>"
            place = f'x="{at:.1f}" y="{i * row + 4:.1f}" width="{width:.1f}" height="16"'
            body.append(f'<rect class="b{colour}" {place}>{title}</rect>')
            at += width
        whole = number(sum(size for _, size, _ in bar.parts))
        body.append(f'<text x="{at + 5:.1f}" y="{i * row + 16:.1f}">{whole}</text>')
    names = {(name, colour) for bar in bars for name, size, colour in bar.parts if size > 0}
    legend = _legend(sorted(names, key=lambda pair: pair[1]))
    return _svg(body, label, len(bars) * row + 4) + legend


def histogram(values: Sequence[tuple[float, int]], x_label: str, rules: Sequence[Rule] = (), bins: int = 48) -> str:
    """Of (value, count) pairs, in bins that are evenly wide on a logarithmic axis."""
    positive = [(v, n) for v, n in values if v > 0]
    if not positive:
        return ""
    xs = [v for v, _ in positive] + [rule.x for rule in rules if rule.x is not None]
    x = _scale(xs, True, _LEFT, WIDTH - _RIGHT, from_zero=False)
    step = math.log(x.high / x.low) / bins
    counts = [0] * bins
    for value, count in positive:
        counts[min(bins - 1, int(math.log(value / x.low) / step))] += count
    y = _scale([float(c) for c in counts], False, HEIGHT - _BOTTOM, _TOP, from_zero=True)
    chart = Chart(Axis(x_label, log=True), Axis("samples"), (), rules)
    body = [*_axes(chart, x, y)]
    for i, count in enumerate(counts):
        if count:
            left, right = x(x.low * math.exp(i * step)), x(x.low * math.exp((i + 1) * step))
            body.append(
                f'<rect class="b1" x="{left:.1f}" y="{y(count):.1f}" width="{max(0.5, right - left - 0.5):.1f}" '
                f'height="{y(0) - y(count):.1f}"/>'
            )
    return _svg([*body, *_rules(chart, x, y)], f"histogram of {x_label}")


def _svg(body: Sequence[str], label: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'


def _legend(items: Sequence[tuple[str, int]]) -> str:
    if len(items) < 2:
        return ""
    return '<p class="legend">' + "".join(f'<span><i class="b{c}"></i>{escape(n)}</span>' for n, c in items) + "</p>"
