"""Writes Grafana's dashboards from the panels beside it:  python deploy/grafana/build.py

A test holds the written files to their source, and another asks a real Prometheus for every query.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / "dashboards"
sys.path.insert(0, str(HERE))
from panel import Dashboard, Panel  # noqa: E402
from panels_making import PIPELINE, SYNTH, TRAINING  # noqa: E402
from panels_serving import LOADTESTS, PLATFORM, SERVING  # noqa: E402

DASHBOARDS = (PIPELINE, SYNTH, TRAINING, SERVING, LOADTESTS, PLATFORM)

_COLUMNS, _HEIGHT = 24, 8
_SOURCE = {"type": "prometheus", "uid": "prometheus"}


def render(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana's JSON. Links lead to the other ones; vertical lines show when load tests ran."""
    panels, top = [], 0
    for title, row in dashboard.rows:
        panels.append(_row(title, top, len(panels) + 1))
        width = _COLUMNS // len(row)
        for place, panel in enumerate(row):
            position = {"x": place * width, "y": top + 1, "w": width, "h": _HEIGHT}
            panels.append(_panel(panel, position, len(panels) + 1))
        top += _HEIGHT + 1
    return {
        "uid": f"textmill-{dashboard.name}",
        "title": f"textmill: {dashboard.title}",
        "description": dashboard.description,
        "tags": ["textmill"],
        "schemaVersion": 41,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [{"title": "textmill", "type": "dashboards", "tags": ["textmill"], "asDropdown": True}],
        "annotations": {"list": [_load_tests()]},
        "panels": panels,
    }


def _load_tests() -> dict[str, Any]:
    return {
        "name": "load tests",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": 'sum(textmill_jobs_running{kind="loadtest"}) > 0',
        "titleFormat": "load test",
    }


def _row(title: str, top: int, number: int) -> dict[str, Any]:
    position = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": position, "collapsed": False, "panels": []}


def _panel(panel: Panel, position: dict[str, int], number: int) -> dict[str, Any]:
    custom = {} if panel.kind == "stat" else {"fillOpacity": 10, "showPoints": "never"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom, "min": panel.least}
    if panel.limit is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.limit}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"] = custom | ({} if panel.kind == "stat" else {"thresholdsStyle": {"mode": "line"}})
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def text(dashboard: Dashboard) -> str:
    return json.dumps(render(dashboard), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for one in DASHBOARDS:
        (FOLDER / f"{one.name}.json").write_text(text(one))
