"""Draws a dashboard as one picture: each panel where its ``gridPos`` puts it, from what Prometheus answered.

It stands in for Grafana, and knows the panel kinds and units that deploy/grafana uses. Another kind is an error, so
that none is left out in silence.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from drawing import units
from drawing.canvas import FAINT, GREEN, LINES, ORANGE, PAPER, RED, STYLE, Canvas
from matplotlib.axes import Axes

Json = dict[str, Any]
Answers = Mapping[str, list[Json]]
"""What Prometheus's API gave for each query: series, each with ``metric`` (labels) and ``values`` (time, text)."""

_WIDTH, _COLUMNS, _UNIT_HEIGHT, _HEAD = 1280, 24, 34, 56
_LEGEND_LINE, _LETTER, _FEW = 14, 5.6, 6


@dataclass(frozen=True)
class Run:
    """When it was, in seconds since 1970, and how far apart its samples are."""

    began: float
    ended: float
    step_s: float
    words: str


@dataclass(frozen=True)
class Line:
    name: str
    minutes: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """A panel's rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float


def draw(dashboard: Json, answers: Answers, run: Run) -> Canvas:
    """Raises ``LookupError`` for a panel kind or unit that isn't known, or a query that isn't in ``answers``."""
    below = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(_WIDTH, _HEAD + below * _UNIT_HEIGHT + 8)
        canvas.text(12, 20, dashboard["title"], 16, weight="bold")
        canvas.text(12, 42, run.words + "; shaded: a load test is running", 10, FAINT)
        shaded = [span for note in dashboard["annotations"]["list"] for span in spans(answers[note["expr"]], run)]
        for panel in dashboard["panels"]:
            _drawer(panel["type"])(canvas, panel, _place(panel["gridPos"]), _lines(panel, answers, run), run, shaded)
    return canvas


def _place(grid: Mapping[str, int]) -> Place:
    column = _WIDTH / _COLUMNS
    return Place(
        grid["x"] * column + 4, _HEAD + grid["y"] * _UNIT_HEIGHT + 4,
        grid["w"] * column - 8, grid["h"] * _UNIT_HEIGHT - 8,
    )  # fmt: skip


def _lines(panel: Json, answers: Answers, run: Run) -> list[Line]:
    targets = panel.get("targets", [])
    return [line(one, target["legendFormat"], run) for target in targets for one in answers[target["expr"]]]


def line(series: Json, legend: str, run: Run) -> Line:
    """A series with the legend's ``{{label}}`` filled in, and NaN wherever samples are missing, so that lines break."""
    name = re.sub(r"{{\s*(\w+)\s*}}", lambda found: series["metric"].get(found[1], ""), legend).strip()
    minutes: list[float] = []
    values: list[float] = []
    for time, value in series["values"]:
        minute = (float(time) - run.began) / 60
        if minutes and (minute - minutes[-1]) * 60 > 1.5 * run.step_s:
            minutes.append(minute)
            values.append(math.nan)
        minutes.append(minute)
        values.append(float(value) if math.isfinite(float(value)) else math.nan)
    return Line(name or "Value", tuple(minutes), tuple(values))


def spans(series: list[Json], run: Run) -> list[tuple[float, float]]:
    """From when to when, in minutes, there were samples."""
    found: list[tuple[float, float]] = []
    for one in series:
        for time, _ in one["values"]:
            minute, step = (float(time) - run.began) / 60, run.step_s / 60
            if found and minute - found[-1][1] < 1.5 * step:
                found[-1] = (found[-1][0], minute)
            else:
                found.append((minute, minute))
    return found


def _row(canvas: Canvas, panel: Json, place: Place, *_: Any) -> None:
    canvas.text(place.x + 4, place.y + place.height / 2, panel["title"], 12, weight="bold")


def _frame(canvas: Canvas, panel: Json, place: Place) -> None:
    canvas.box(place.x, place.y, place.width, place.height, PAPER, "#d8dbe0")
    canvas.text(place.x + 10, place.y + 14, panel["title"], 11, weight="bold")


def _nothing(canvas: Canvas, place: Place) -> None:
    canvas.text(place.x + place.width / 2, place.y + place.height / 2, "No data", 13, FAINT, ha="center")


def _stat(canvas: Canvas, panel: Json, place: Place, lines: list[Line], *_: Any) -> None:
    """The last value of each series: one in the middle, several below each other with their names."""
    _frame(canvas, panel, place)
    defaults = panel["fieldConfig"]["defaults"]
    last = [(one.name, finite[-1]) for one in lines if (finite := [v for v in one.values if math.isfinite(v)])]
    if not last:
        _nothing(canvas, place)
    each = (place.height - 28) / max(1, len(last))
    for index, (name, value) in enumerate(last):
        middle = place.y + 28 + each * (index + 0.5)
        words, colour = units.shown(value, defaults["unit"]), colour_of(value, defaults)
        if len(last) == 1:
            canvas.text(place.x + place.width / 2, middle, words, 44, colour, weight="bold", ha="center")
            canvas.text(place.x + place.width / 2, middle + 44, name, 10, FAINT, ha="center")
        else:
            canvas.text(place.x + 14, middle, name, 11)
            canvas.text(place.x + place.width - 14, middle, words, 24, colour, weight="bold", ha="right")


def colour_of(value: float, defaults: Json) -> str:
    """Of the last threshold that the value has reached; green where a panel has none."""
    colours = {"green": GREEN, "red": RED}
    steps = defaults.get("thresholds", {}).get("steps", [{"color": "green", "value": None}])
    return [colours[s["color"]] for s in steps if s["value"] is None or value >= s["value"]][-1]


def _timeseries(
    canvas: Canvas, panel: Json, place: Place, lines: list[Line], run: Run, shaded: list[tuple[float, float]]
) -> None:
    _frame(canvas, panel, place)
    if not any(math.isfinite(v) for one in lines for v in one.values):
        return _nothing(canvas, place)
    defaults = panel["fieldConfig"]["defaults"]
    limit = limit_of(defaults)
    lines = merged(lines)
    entries = [(one.name, *_look(i)) for i, one in enumerate(lines)]
    entries += [] if limit is None else [(f"limit {units.shown(limit, defaults['unit'])}", RED, "--")]
    legend = _legend(canvas, place, entries)
    axes = canvas.axes(place.x + 62, place.y + 30, place.width - 82, place.height - 30 - 24 - legend)
    for index, one in enumerate(lines):
        _plot(axes, one, *_look(index))
    for start, end in shaded:
        axes.axvspan(start, end, color=ORANGE, alpha=0.13, linewidth=0)
    _scale(axes, defaults, lines, limit, (run.ended - run.began) / 60)
    return None


def merged(lines: list[Line]) -> list[Line]:
    """Where there are many lines, those that were 0 all along are one that says so, and so are those without a value.

    Grafana lets a reader scroll through the names; a picture can't.
    """
    if len(lines) <= _FEW:
        return lines
    lively = [one for one in lines if any(value and math.isfinite(value) for value in one.values)]
    zero = [one for one in lines if one not in lively and any(math.isfinite(value) for value in one.values)]
    empty = len(lines) - len(lively) - len(zero)
    if zero:
        lively.append(Line(f"0 all along: {len(zero)} more", zero[0].minutes, zero[0].values))
    return [*lively, Line(f"without a value: {empty} more", (), ())] if empty else lively


def limit_of(defaults: Json) -> float | None:
    """The value of the red threshold, where the panel wants it drawn."""
    wanted = defaults["custom"].get("thresholdsStyle", {}).get("mode") == "line"
    return next((s["value"] for s in defaults["thresholds"]["steps"] if s["color"] == "red"), None) if wanted else None


def _look(index: int) -> tuple[str, str]:
    """Colour and style of a line; where the colours are used up, they come again dotted."""
    return LINES[index % len(LINES)], "-" if index < len(LINES) else ":"


def _plot(axes: Axes, one: Line, colour: str, style: str) -> None:
    """A sample without neighbours is a dot, since no line would show it."""
    axes.plot(one.minutes, one.values, color=colour, linestyle=style, linewidth=1.5, clip_on=False)
    padded = (math.nan, *one.values, math.nan)
    alone = [
        i for i, v in enumerate(one.values)
        if math.isfinite(v) and math.isnan(padded[i]) and math.isnan(padded[i + 2])
    ]  # fmt: skip
    axes.plot([one.minutes[i] for i in alone], [one.values[i] for i in alone], ".", color=colour, markersize=5)


def _scale(axes: Axes, defaults: Json, lines: list[Line], limit: float | None, minutes: float) -> None:
    """From the panel's minimum to a little above the data. A limit far above them is only in the legend."""
    values = [v for one in lines for v in one.values if math.isfinite(v)]
    least, most = min(values), max(values)
    bottom = defaults["min"] if defaults["min"] is not None else least - 0.08 * (most - least or abs(least) or 1)
    top = most + 0.08 * (most - bottom) if most > bottom else bottom + 1
    if limit is not None:
        top = max(top, 1.08 * limit) if limit <= 4 * top else top
        axes.axhline(limit, color=RED, linestyle="--", linewidth=1.2)
    axes.set(xlim=(0, minutes), ylim=(bottom, top))
    axes.yaxis.set_major_locator(units.locator(defaults["unit"], top))
    axes.yaxis.set_major_formatter(units.formatter(defaults["unit"]))
    axes.xaxis.set_major_locator(units.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda minute, _: f"{minute:g} min")


def _legend(canvas: Canvas, place: Place, entries: list[tuple[str, str, str]]) -> float:
    """Names along the panel's lower edge, in as many columns as fit. Returns the height that they take."""
    widest = max(len(name) for name, _, _ in entries) * _LETTER + 32
    columns = max(1, int((place.width - 20) / widest))
    rows = math.ceil(len(entries) / columns)
    top = place.y + place.height - 6 - rows * _LEGEND_LINE
    for index, (name, colour, style) in enumerate(entries):
        x, y = place.x + 12 + index % columns * widest, top + (index // columns + 0.5) * _LEGEND_LINE
        canvas.line(x, y, 12, colour, style, 2.2)
        canvas.text(x + 17, y, name, 9)
    return rows * _LEGEND_LINE + 6


Drawer = Callable[[Canvas, Json, Place, list[Line], Run, list[tuple[float, float]]], None]
KINDS: dict[str, Drawer] = {"row": _row, "stat": _stat, "timeseries": _timeseries}


def _drawer(kind: str) -> Drawer:
    if kind not in KINDS:
        raise LookupError(f"no way to draw a panel of the kind {kind!r}; add it to KINDS in docs/drawing/dashboard.py")
    return KINDS[kind]
