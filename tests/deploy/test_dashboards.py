"""Dashboards and rules ask for metrics that exist, in PromQL that parses. That there is data is tests/e2e's to show."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml
from deploy_tools import ROOT
from known import known_metrics, packages
from manifests import build
from rule_files import rules

GRAFANA = ROOT / "deploy" / "grafana"
sys.path.insert(0, str(GRAFANA))
build_dashboards = importlib.import_module("build")
DASHBOARDS = {d.name: build_dashboards.render(d) for d in build_dashboards.DASHBOARDS}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def test_written_files_are_up_to_date() -> None:
    written = {path.stem: path.read_text() for path in build_dashboards.FOLDER.glob("*.json")}
    made = {d.name: build_dashboards.text(d) for d in build_dashboards.DASHBOARDS}
    assert written == made, "run: python deploy/grafana/build.py"


def test_panels_have_places_of_their_own() -> None:
    for dashboard in DASHBOARDS.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in dashboard["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_panels_ask_for_metrics_that_exist(name: str) -> None:
    known = known_metrics() | RECORDED
    assert [metric for query in _queries(DASHBOARDS[name]) for metric in metrics_of(query) if metric not in known] == []


def test_rules_ask_for_metrics_that_exist() -> None:
    known = known_metrics() | RECORDED
    assert [(r.get("alert"), m) for r in rules() for m in metrics_of(r["expr"]) if m not in known] == []


def test_scaling_asks_for_metrics_that_exist() -> None:
    scaled = [r for r in build("production") if r["kind"] == "ScaledObject"]
    queries = [trigger["metadata"]["query"] for r in scaled for trigger in r["spec"]["triggers"]]
    assert queries
    assert [metric for query in queries for metric in metrics_of(query) if metric not in known_metrics()] == []


def test_runbooks_ask_for_metrics_that_exist() -> None:
    outside = {"container_cpu_cfs_throttled_periods_total"}  # of the node's own exporter
    found = re.compile(r"\b((?:textmill_|textmill:|vllm:)[a-z0-9_:]*[a-z0-9])\b")
    for path in (ROOT / "docs" / "operations").rglob("*.md"):
        names = set(found.findall(path.read_text())) - outside
        assert names <= known_metrics() | RECORDED | packages(), path.name


def test_a_metric_that_does_not_exist_is_found() -> None:
    assert metrics_of("sum(rate(textmill_jobs_opened{kind='x'}[5m])) / 2") == ["textmill_jobs_opened"]
    assert "textmill_jobs_opened" not in known_metrics()
    with pytest.raises(ValueError):
        metrics_of("sum(rate(")


def test_the_bound_of_the_objective_is_a_bucket() -> None:
    """An objective in the middle of a bucket would be no objective."""
    from textmill_inference.gateway import metrics

    assert 2.5 in metrics._SECONDS
    assert any('le="2.5"' in rule["expr"] for rule in rules())


def test_grafana_finds_its_files() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "textmill.yml").read_text())["providers"][0]
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    used = set(re.findall(r'"uid": "(prometheus)"', json.dumps(DASHBOARDS)))
    assert used == {source["uid"]}
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def metrics_of(query: str) -> list[str]:
    """The metric names of a query. Raises ``ValueError`` for what isn't PromQL."""
    return list(_selected(promql_parser.parse(query.replace("$__rate_interval", "5m"))))


def _selected(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        if node.name:
            yield node.name
        return
    for part in ("lhs", "rhs", "expr", "vector_selector", "param"):
        child = getattr(node, part, None)
        if child is not None and not isinstance(child, (str, int, float)):
            yield from _selected(child)
    for child in getattr(node, "args", None) or []:
        yield from _selected(child)


def _queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [*panels, *(note["expr"] for note in dashboard["annotations"]["list"])]
