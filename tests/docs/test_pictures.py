"""The pictures in the docs are of the dashboards that there are, and leave out no panel and no span."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.collector import Span

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))
dashboard = importlib.import_module("drawing.dashboard")
trace = importlib.import_module("drawing.trace")
units = importlib.import_module("drawing.units")
BOARDS = {p.stem: json.loads(p.read_text()) for p in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")}
PICTURES = ROOT / "docs" / "operations" / "pictures"
RUN = dashboard.Run(began=1_000.0, ended=1_300.0, step_s=5, words="made up")


def series(labels: dict[str, str], *values: float, start: float = 1_005.0) -> dict[str, Any]:
    """As Prometheus gives it: a sample each five seconds; None is a sample that is missing."""
    return {"metric": labels, "values": [[start + 5 * i, str(v)] for i, v in enumerate(values) if v is not None]}


def words_of(path: Path) -> list[str]:
    return [text.text or "" for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def answers_for(board: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked += [note["expr"] for note in board["annotations"]["list"]]
    return {query: [series({}, 0.25, 0.5)] for query in asked}


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_dashboard_has_its_picture_with_every_panel(name: str) -> None:
    """By hand after a change of a dashboard: make pictures."""
    words = words_of(PICTURES / f"{name}.svg")
    titles = [panel["title"] for panel in BOARDS[name]["panels"]]
    assert [title for title in titles if title not in words] == []
    assert words.count("No data") == 0


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_every_panel_is_drawn(name: str, tmp_path: Path) -> None:
    board = BOARDS[name]
    path = tmp_path / "picture.svg"
    dashboard.draw(board, answers_for(board), RUN).save(path)
    assert {panel["title"] for panel in board["panels"]} <= set(words_of(path))


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    board = json.loads(json.dumps(BOARDS["platform"]))
    board["panels"][1]["type"] = "piechart"
    with pytest.raises(LookupError, match="piechart"):
        dashboard.draw(board, answers_for(board), RUN)
    with pytest.raises(LookupError, match="furlong"):
        units.shown(1, "furlong")


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    board = BOARDS["serving"]
    for name in ("one.svg", "two.svg"):
        dashboard.draw(board, answers_for(board), RUN).save(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_line_has_the_legends_name_and_breaks_where_samples_are_missing() -> None:
    made = dashboard.line(series({"kind": "train", "le": "5"}, 1, None, 3), "{{kind}} p50", RUN)
    assert made.name == "train p50"
    assert [str(value) for value in made.values] == ["1.0", "nan", "3.0"]
    assert dashboard.line(series({}, 1), "{{reason}}", RUN).name == "Value"


def test_of_many_lines_the_idle_ones_are_counted_together() -> None:
    samples = [*((0, i) for i in range(1, 6)), *[(0, 0)] * 3, *[(float("nan"),)] * 2]
    lines = [dashboard.line(series({"kind": str(i)}, *values), "{{kind}}", RUN) for i, values in enumerate(samples)]
    names = [one.name for one in dashboard.merged(lines)]
    assert names == ["0", "1", "2", "3", "4", "0 all along: 3 more", "without a value: 2 more"]
    assert dashboard.merged(lines[4:]) == lines[4:]


def test_load_tests_are_shaded_from_their_first_sample_to_their_last() -> None:
    samples = series({}, 1, 1, 1, None, None, 1, start=1_060.0)
    assert dashboard.spans([samples], RUN) == [(1.0, pytest.approx(70 / 60)), (pytest.approx(85 / 60),) * 2]


def test_a_value_has_the_colour_of_the_threshold_it_reached() -> None:
    steps = [{"color": "green", "value": None}, {"color": "red", "value": 1}]
    defaults = {"thresholds": {"steps": steps}}
    below, at = (dashboard.colour_of(value, defaults) for value in (0.9, 1))
    assert below == dashboard.colour_of(5, {})
    assert at == "#c4162a"


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (1_250, "short", "1.25 K"),
        (999.7, "short", "1 K"),
        (0.004, "short", "0.004"),
        (0.0125, "s", "12.5 ms"),
        (90, "s", "1.5 min"),
        (3 * 2**29, "bytes", "1.5 GiB"),
        (2**30, "bytes", "1 GiB"),
        (0.125, "percentunit", "12.5 %"),
        (2, "reqps", "2 req/s"),
        (2e-4, "sci", "2.0e-04"),
    ],
)
def test_figures_have_units(value: float, unit: str, words: str) -> None:
    assert units.shown(value, unit) == words


def span(number: str, parent: str, name: str, start_s: float, end_s: float) -> Span:
    times = int(start_s * 1e9), int(end_s * 1e9)
    return Span(f"textmill-{name}", name, "client", "t", number, parent, False, {}, (), *times)


def calls(count: int) -> list[Span]:
    """A job with calls that overlap by half, each answered by a server whose span is inside of it."""
    made = [span("job", "elsewhere", "synth", 0, count + 1)]
    for i in range(count):
        made += [span(f"c{i}", "job", "chat", i, i + 1.5), span(f"s{i}", f"c{i}", "server", i + 0.1, i + 1.4)]
    return made


@pytest.mark.parametrize("count", [0, 1, 3, 4, 300])
def test_each_span_is_in_one_row(count: int) -> None:
    spans = calls(count)
    drawn = [one.span_id for row in trace.rows(reversed(spans)) for one in row.spans]
    assert sorted(drawn) == sorted(one.span_id for one in spans)


def test_many_alike_are_one_row_and_so_are_what_they_caused() -> None:
    shapes = [(row.depth, row.spans[0].name, len(row.spans)) for row in trace.rows(calls(300))]
    assert shapes == [(0, "synth", 1), (1, "chat", 300), (2, "server", 300)]


def test_few_alike_have_rows_of_their_own_above_what_they_caused() -> None:
    shapes = [(row.depth, row.spans[0].span_id) for row in trace.rows(calls(2))]
    assert shapes == [(0, "job"), (1, "c0"), (2, "s0"), (1, "c1"), (2, "s1")]


def test_a_row_says_how_long_and_how_many_at_once() -> None:
    row = trace.rows(calls(300))[1]
    assert trace.lasted(row) == "median 1.5 s, up to 2 at once"
    assert trace.most_at_once([span("a", "", "x", 0, 1), span("b", "", "x", 1, 2)]) == 1


def test_a_trace_is_drawn_with_its_counts(tmp_path: Path) -> None:
    trace.draw(calls(300), "made up").save(tmp_path / "trace.svg")
    words = words_of(tmp_path / "trace.svg")
    assert {"synth", "chat  x 300", "server  x 300", "made up; 601 spans in 3 rows"} <= set(words)


def test_the_docs_have_the_trace_of_the_whole_job() -> None:
    words = words_of(PICTURES / "trace.svg")
    assert {f"{kind} job" for kind in ("corpus", "synth", "train", "deploy", "evaluate", "loadtest")} <= set(words)
