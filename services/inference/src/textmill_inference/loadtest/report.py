"""A load test's report as a page and as a table: one HTML file that needs nothing else, and CSV, a line a stage.

Every figure is read from the report; the drawings also take the stages' seconds and histograms.
"""

import csv
import io
from collections.abc import Sequence
from importlib import resources
from statistics import median

import jinja2
from markupsafe import Markup

from textmill.contracts.loadreport import Latencies, Level, LoadtestReport, ServerSeries
from textmill.contracts.loadtest import Clock, ErrorClass, Measured, Phase, Quantile
from textmill.contracts.slo import Measure
from textmill_inference.loadtest.histogram import Histogram, value_of
from textmill_inference.loadtest.plots import Axis, Bar, Chart, Dot, Line, Mark, Rule, draw, histogram, number, stacked
from textmill_inference.loadtest.verdict import load_words

_PART_COLOURS = {
    "generator": 6, "network and gateway": 2, "network": 2, "gateway": 5, "server front end": 3, "queue": 4,
    "prefill": 5, "decode": 1, "server": 1,
}  # fmt: skip
_CSV_LATENCIES = ("ttft_ms", "ttft_sent_ms", "itl_ms", "per_token_ms", "e2e_ms", "e2e_sent_ms", "lateness_ms")
_AGAINST_LOAD: tuple[tuple[str, str, Measure], ...] = (
    ("ttft_ms", "Time to first token against load", "ttft"),
    ("itl_ms", "Time between tokens against load", "inter_token"),
    ("e2e_ms", "End to end against load", "e2e"),
)
_HISTOGRAMS: tuple[tuple[Clock, str, Measure], ...] = (
    (Clock.TTFT_SCHEDULED, "time to first token", "ttft"),
    (Clock.INTER_TOKEN, "time between tokens", "inter_token"),
    (Clock.E2E_SCHEDULED, "end to end", "e2e"),
)


def page_of(report: LoadtestReport, stages: Sequence[Measured], series: Sequence[ServerSeries]) -> str:
    """The whole page."""
    template = (
        resources.files("textmill_inference")
        .joinpath("loadtest")
        .joinpath("report.html.j2")
        .read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, ms=_ms, quantile=_quantile)
    charts = [
        (title, Markup(drawn), note) for title, drawn, note in _drawings(report, stages, series) if drawn
    ]  # drawn by plots.py, which escapes all that it is given
    return environment.from_string(template).render(report=report, charts=charts, load_words=load_words)


def csv_of(report: LoadtestReport) -> str:
    """A line a stage; percentiles that the sample can't support are empty."""
    out = io.StringIO()
    writer = csv.writer(out)
    plain = (
        "number", "side", "purpose", "kind", "load", "valid", "seconds", "requests", "succeeded", "not_sent",
        "requests_per_s", "output_tokens_per_s", "in_flight",
    )  # fmt: skip
    errors = [str(error) for error in ErrorClass]
    latencies = [f"{name}_{part}" for name in _CSV_LATENCIES for part in ("mean", "p50", "p90", "p99")]
    writer.writerow([*plain, "slo_met", "slo_why", *(f"errors_{error}" for error in errors), *latencies])
    for level in report.levels:
        judged = level.judgement
        row: list[object] = [getattr(level, name) for name in plain]
        row += ["" if judged is None or judged.met is None else judged.met, judged.why if judged else ""]
        row += [level.errors.get(ErrorClass(error), 0) for error in errors]
        for name in _CSV_LATENCIES:
            row += _cells(getattr(level, name))
        writer.writerow([_harmless(cell) for cell in row])
    return out.getvalue()


def _cells(found: Latencies | None) -> list[object]:
    if found is None:
        return ["", "", "", ""]
    values = (found.mean, found.p50, found.p90, found.p99)
    return ["" if value is None else round(value, 3) for value in values]


def _harmless(cell: object) -> object:
    """A text that a spreadsheet would take for a formula is quoted."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@" and cell else cell


def _ms(value: float | None) -> str:
    return "–" if value is None else number(value)


def _quantile(latency: Latencies | None, percent: float) -> Quantile | None:
    return next((q for q in latency.quantiles if q.percent == percent), None) if latency is not None else None


# -- the drawings ------------------------------------------------------------------------------------------------------

Drawing = tuple[str, str, str]
"""Title, SVG, and a line below it."""


def _drawings(report: LoadtestReport, stages: Sequence[Measured], series: Sequence[ServerSeries]) -> list[Drawing]:
    levels = list(report.levels)
    found: list[Drawing] = []
    if len({level.load for level in levels}) > 1:
        found += _against_load(report, levels)
    if report.capacity is not None:
        found.append(_search(report))
    found.append(_where(levels))
    found += _over_time(levels, stages)
    found += _histograms(report, levels, stages)
    found.append(_errors(levels))
    found += [
        (f"Server: {one.title}", _of_series(one), one.source) for one in series if any(p.value for p in one.points)
    ]
    return found


def _load_axis(levels: Sequence[Level]) -> Axis:
    loads = [level.load for level in levels]
    word = "requests in flight" if levels[0].kind == "concurrency" else "requests per second due"
    return Axis(word, log=max(loads) / max(min(loads), 1e-9) > 8)


def _against_load(report: LoadtestReport, levels: Sequence[Level]) -> list[Drawing]:
    axis, sides = _load_axis(levels), sorted({level.side for level in levels})
    knee = [Rule(f"knee {number(report.knee.load)}", x=report.knee.load)] if report.knee else []
    tokens = [
        line
        for n, side in enumerate(sides)
        for line in _by_load([v for v in levels if v.side == side], "output_tokens_per_s", _of_side(side, sides), n + 1)
    ]
    found: list[Drawing] = [
        (
            "Throughput against load",
            draw(Chart(axis, Axis("output tokens/s"), tokens, knee)),
            "Each dot is a stage, the line joins the medians; crosses are stages that the load generator spoiled.",
        )
    ]
    for field, title, measure in _AGAINST_LOAD:
        lines = [
            line
            for n, side in enumerate(sides)
            for line in _percentiles([v for v in levels if v.side == side], field, _of_side(side, sides), 2 * n + 1)
        ]
        chart = Chart(axis, Axis("ms", log=True), lines, [*_limits(report, measure), *knee])
        found.append((title, draw(chart), "Whiskers are 95 % intervals."))
    return found


def _of_side(side: str, sides: Sequence[str]) -> str:
    return f"{side}: " if len(sides) > 1 else ""


def _limits(report: LoadtestReport, measure: Measure) -> list[Rule]:
    limits = report.slo.limits if report.slo else ()
    return [Rule(f"SLO p{limit.percent:g}", y=limit.ms) for limit in limits if limit.measure == measure]


def _by_load(levels: Sequence[Level], field: str, label: str, colour: int) -> list[Line]:
    """Dots of all stages, and the medians of the valid ones at each load."""
    dots = [
        Dot(
            v.load,
            getattr(v, field),
            f"stage {v.number}: {number(getattr(v, field))}",
            mark="dot" if v.valid else "cross",
        )
        for v in levels
    ]
    valid = [v for v in levels if v.valid]
    medians = [
        Dot(load, median(getattr(v, field) for v in valid if v.load == load))
        for load in sorted({v.load for v in valid})
    ]
    return [
        Line("", dots, colour, joined=False),
        Line(f"{label}median" if label else "", medians, colour, dotted=False),
    ]


def _percentiles(levels: Sequence[Level], field: str, label: str, colour: int) -> list[Line]:
    lines = []
    for n, percent in enumerate((50.0, 99.0)):
        dots = []
        for level in sorted(levels, key=lambda v: v.load):
            latency: Latencies | None = getattr(level, field)
            quantile = _quantile(latency, percent)
            if quantile is not None and level.valid:
                note = f"stage {level.number}, load {number(level.load)}: p{percent:g} {number(quantile.ms)} ms"
                dots.append(Dot(level.load, quantile.ms, note, quantile.low_ms, quantile.high_ms))
        lines.append(Line(f"{label}p{percent:g}", dots, colour + n, joined=len(dots) < 12))
    return [line for line in lines if line.dots]


def _search(report: LoadtestReport) -> Drawing:
    """Which loads the search tried, and how each stage went."""
    found = report.capacity
    assert found is not None
    groups: tuple[tuple[str, int, Mark, bool | None], ...] = (
        ("met the SLO", 3, "dot", True),
        ("missed it", 2, "cross", False),
        ("spoiled, counts nowhere", 6, "ring", None),
    )
    lines = []
    for label, colour, mark, met in groups:
        dots = [
            Dot(n, trial.load, f"stage {n}: {number(trial.load)}", mark=mark)
            for n, trial in enumerate(found.trials, 1)
            if trial.met is met
        ]
        lines.append(Line(label, dots, colour, joined=False))
    ends = (("at least", found.low), ("below", found.high), ("wanted", found.wanted))
    rules = [Rule(f"{word} {number(load)}", y=load) for word, load in ends if load is not None]
    return (
        "The search for the capacity",
        draw(Chart(Axis("stage"), Axis("load", log=True), [line for line in lines if line.dots], rules)),
        found.why,
    )


def _where(levels: Sequence[Level]) -> Drawing:
    """One bar for each load: the last valid stage at it."""
    last = {(v.side, v.load): v for v in levels if v.valid and v.breakdown is not None}
    several = len({side for side, _ in last}) > 1
    bars = [
        Bar(
            f"{side + ' ' if several else ''}{number(load)}",
            [(part.name, part.mean_ms, _PART_COLOURS[part.name]) for part in level.breakdown.parts],
        )
        for (side, load), level in sorted(last.items())
        if level.breakdown is not None
    ]
    note = "Mean milliseconds of a request by load, from when it was due to its last byte."
    return "Where the time went", stacked(bars[:24], "where the time went, by load", "ms"), note


def _over_time(levels: Sequence[Level], stages: Sequence[Measured]) -> list[Drawing]:
    """All stages one after the other; what is not counted (warm-up, cool-down) is shaded."""
    spans, named = [], {"ttft_p50_ms": "p50", "ttft_p99_ms": "p99"}
    latency: dict[str, list[Dot]] = {name: [] for name in named}
    tokens, flight = [], []
    for level, stage in zip(levels, stages, strict=True):
        began = stage.started_at - stages[0].started_at
        for second in stage.series:
            at = began + second.at_s
            if second.phase != Phase.MEASURED:
                spans.append((at, at + 1))
            for name in named:
                if (value := getattr(second, name)) is not None:
                    latency[name].append(Dot(at, value))
            tokens.append(Dot(at, second.output_tokens))
            flight.append(Dot(at, second.in_flight, f"stage {level.number}"))
    lines = [Line(label, latency[name], n + 1, dotted=False, gap=3) for n, (name, label) in enumerate(named.items())]
    axis = Axis("seconds")
    note = "Shaded seconds are warm-up and cool-down, which count in no figure."
    return [
        ("Time to first token over time", draw(Chart(axis, Axis("ms", log=True), lines, (), spans)), note),
        (
            "Tokens over time",
            draw(Chart(axis, Axis("tokens/s"), [Line("", tokens, 1, dotted=False, gap=3)], (), spans)),
            note,
        ),
        (
            "In flight over time",
            draw(Chart(axis, Axis("requests"), [Line("", flight, 3, dotted=False, gap=3)], (), spans)),
            note,
        ),
    ]


def _histograms(report: LoadtestReport, levels: Sequence[Level], stages: Sequence[Measured]) -> list[Drawing]:
    """Of the stage that matters: the highest load that met the SLO, else that with the most tokens a second."""
    valid = [(level, stage) for level, stage in zip(levels, stages, strict=True) if level.valid and level.succeeded]
    if not valid:
        return []
    met = [pair for pair in valid if pair[0].judgement is not None and pair[0].judgement.met]
    level, stage = max(met, key=lambda p: p[0].load) if met else max(valid, key=lambda p: p[0].output_tokens_per_s)
    found: list[Drawing] = []
    for clock, title, measure in _HISTOGRAMS:
        if (latency := stage.latencies.get(clock)) is None:
            continue
        counts = Histogram.decode(latency.histogram).counts
        rules = [Rule(rule.label, x=rule.y) for rule in _limits(report, measure)]
        drawn = histogram([(value_of(index) / 1e3, n) for index, n in counts.items()], f"{title} (ms)", rules)
        note = f"Stage {level.number}, at {load_words(level.load, level.kind)}; {latency.samples:,} samples."
        found.append((f"Histogram: {title}", drawn, note))
    return found


def _errors(levels: Sequence[Level]) -> Drawing:
    colours = {error: n % 6 + 1 for n, error in enumerate(ErrorClass)}
    bars = [
        Bar(f"{level.number}: {number(level.load)}", [(str(e), float(n), colours[e]) for e, n in level.errors.items()])
        for level in levels
        if level.errors
    ]
    return "Errors by class", stacked(bars[:30], "errors by class and stage", "errors"), "By stage and its load."


def _of_series(one: ServerSeries) -> str:
    dots = [Dot(point.at_s, point.value) for point in one.points]
    return draw(Chart(Axis("seconds"), Axis(one.title), [Line("", dots, 1, dotted=False)]))
