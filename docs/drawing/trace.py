"""Draws a trace as a waterfall: a row for a span, in its service's colour, below the span that caused it.

Where a span has many children alike (hundreds of calls to an LLM), they are one row that shows how many were open when.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

import matplotlib
from drawing import units
from drawing.canvas import FAINT, LINES, PAPER, STYLE, Canvas
from matplotlib.axes import Axes
from tests.collector import Span

ALIKE = 3
"""So many children of one name have a row each; more have one together."""
_WIDTH, _HEAD, _ROW, _NAMES, _RIGHT = 1280, 78, 19, 400, 24
_BINS = 900


@dataclass(frozen=True)
class Row:
    """One span, or several alike, in the order of their starts."""

    depth: int
    spans: tuple[Span, ...]

    @property
    def start_ns(self) -> int:
        return self.spans[0].start_ns

    @property
    def end_ns(self) -> int:
        return max(span.end_ns for span in self.spans)


def rows(spans: Iterable[Span]) -> list[Row]:
    """Every span is in exactly one row. A span whose parent isn't there is a root."""
    everything = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
    known = {span.span_id for span in everything}
    children: dict[str, list[Span]] = {}
    for span in everything:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    return list(_below([""], children, 0))


def _below(parents: list[str], children: dict[str, list[Span]], depth: int) -> Iterator[Row]:
    """The rows under these parents, which are one row themselves."""
    alike: dict[tuple[str, str, str], list[Span]] = {}
    for span in sorted((c for p in parents for c in children.get(p, [])), key=lambda span: span.start_ns):
        alike.setdefault((span.service, span.name, span.kind), []).append(span)
    made: list[Row] = []
    for group in alike.values():
        together = len(parents) > 1 or len(group) > ALIKE
        made += [Row(depth, tuple(group))] if together else [Row(depth, (span,)) for span in group]
    for row in sorted(made, key=lambda row: row.start_ns):
        yield row
        yield from _below([span.span_id for span in row.spans], children, depth + 1)


def draw(spans: list[Span], words: str) -> Canvas:
    """``words`` are the picture's second line."""
    made = rows(spans)
    began, ended = min(row.start_ns for row in made), max(row.end_ns for row in made)
    services = list(dict.fromkeys(row.spans[0].service for row in made))
    colours = dict(zip(services, LINES, strict=False))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(_WIDTH, _HEAD + len(made) * _ROW + 34)
        canvas.text(12, 20, made[0].spans[0].name, 16, weight="bold")
        canvas.text(12, 42, f"{words}; {len(spans)} spans in {len(made)} rows", 10, FAINT)
        _services(canvas, colours)
        canvas.box(4, _HEAD - 6, _WIDTH - 8, len(made) * _ROW + 34, PAPER, "#d8dbe0")
        axes = _time_axis(canvas, len(made), (ended - began) / 1e9)
        for number, row in enumerate(made):
            _draw_row(canvas, axes, number, row, began, colours[row.spans[0].service])
    return canvas


def _services(canvas: Canvas, colours: dict[str, str]) -> None:
    x = 12.0
    for service, colour in colours.items():
        canvas.box(x, 56, 10, 10, colour)
        canvas.text(x + 15, 61, service, 10)
        x += 34 + 6.4 * len(service)


def _time_axis(canvas: Canvas, count: int, seconds: float) -> Axes:
    """Seconds since the trace began across; rows from 0 at the top down."""
    axes = canvas.axes(_NAMES, _HEAD, _WIDTH - _NAMES - _RIGHT, count * _ROW)
    axes.set(xlim=(0, seconds), ylim=(count, 0), yticks=[])
    axes.xaxis.set_major_locator(units.locator("s", seconds / 2))
    axes.xaxis.set_major_formatter(units.formatter("s"))
    return axes


def _draw_row(canvas: Canvas, axes: Axes, number: int, row: Row, began: int, colour: str) -> None:
    first = row.spans[0]
    middle = _HEAD + (number + 0.5) * _ROW
    indent = 14 + 14 * row.depth
    many = f"  x {len(row.spans)}" if len(row.spans) > 1 else ""
    canvas.box(indent, middle - 4, 8, 8, colour)
    canvas.text(indent + 13, middle, first.name + many, 10)
    shortest = axes.get_xlim()[1] / (_WIDTH - _NAMES - _RIGHT) * 2  # two pixels, or it wouldn't be seen
    start, end = (row.start_ns - began) / 1e9, (row.end_ns - began) / 1e9
    if len(row.spans) == 1:
        axes.barh(number + 0.5, max(end - start, shortest), left=start, height=0.62, color=colour, linewidth=0)
    else:
        _density(axes, number, row, began, colour)
    _beside(axes, number, start, max(end, start + shortest), lasted(row))


def lasted(row: Row) -> str:
    """The span's duration, or the median of several and how many were open at once."""
    durations = [(span.end_ns - span.start_ns) / 1e9 for span in row.spans]
    if len(durations) == 1:
        return units.shown(durations[0], "s")
    return f"median {units.shown(median(durations), 's')}, up to {most_at_once(row.spans)} at once"


def most_at_once(spans: Iterable[Span]) -> int:
    """One that ends when another starts isn't counted with it."""
    changes = sorted([(s.start_ns, 1) for s in spans] + [(s.end_ns, -1) for s in spans])
    return max(accumulate(change for _, change in changes))


def _density(axes: Axes, number: int, row: Row, began: int, colour: str) -> None:
    """How many of the row's spans touch each of the axis's bins, as a share of the most."""
    width = axes.get_xlim()[1] / _BINS
    changes = [0] * (_BINS + 1)
    for span in row.spans:
        changes[min(int((span.start_ns - began) / 1e9 / width), _BINS - 1)] += 1
        changes[min(int((span.end_ns - began) / 1e9 / width), _BINS - 1) + 1] -= 1
    counts = list(accumulate(changes))
    edges = [(i, count) for i, count in enumerate(counts) if count != (counts[i - 1] if i else 0)]
    floor, most = number + 0.81, max(counts)
    times, tops = [i * width for i, _ in edges], [floor - 0.62 * count / most for _, count in edges]
    axes.fill_between(times, tops, floor, step="post", color=colour, linewidth=0)


def _beside(axes: Axes, number: int, start: float, end: float, words: str) -> None:
    """After the bar; where the picture ends, before it; where it begins as well, on it."""
    pixel = axes.get_xlim()[1] / (_WIDTH - _NAMES - _RIGHT)
    needed = (10 + 6 * len(words)) * pixel
    if end + needed < axes.get_xlim()[1]:
        x, side, colour = end + 5 * pixel, "left", FAINT
    elif start > needed:
        x, side, colour = start - 5 * pixel, "right", FAINT
    else:
        x, side, colour = start + 5 * pixel, "left", PAPER
    axes.text(x, number + 0.5, words, size=9, color=colour, ha=side, va="center_baseline")
