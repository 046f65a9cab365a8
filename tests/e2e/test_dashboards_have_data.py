"""After the main job, every panel of every dashboard has data in a real Prometheus, and no rule fails or fires."""

import json
from pathlib import Path
from typing import Any

import pytest
from installation import Tuned
from prometheus_server import PrometheusServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]
FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards"
DASHBOARDS = sorted(path.stem for path in FOLDER.glob("*.json"))
MEASURED_ON_DEMAND = {
    "eval {{instance}}": "the example keeps no document for evaluation",
}
"""Queries of panels that have another: what this run doesn't measure."""


@pytest.fixture
def prometheus(watching: PrometheusServer | None) -> PrometheusServer:
    if watching is None:
        pytest.skip("no Prometheus: install Debian's package 'prometheus', or put the program on the PATH")
    return watching


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_has_data(name: str, prometheus: PrometheusServer, tuned: Tuned) -> None:
    dashboard: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    empty = [
        f"{panel['title']}: {target['expr']}"
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        if target["legendFormat"] not in MEASURED_ON_DEMAND and prometheus.finite(target["expr"]) == 0
    ]
    assert empty == []


def test_every_service_is_scraped_and_every_rule_evaluated(prometheus: PrometheusServer, tuned: Tuned) -> None:
    assert prometheus.targets_down() == []
    assert prometheus.rule_faults() == []


def test_a_good_run_sets_off_no_alarm(prometheus: PrometheusServer, tuned: Tuned) -> None:
    """The example's small model is rejected often, and its records of few facts may look suspicious: that is so."""
    assert set(prometheus.firing()) <= {"TextmillRejectsHigh", "TextmillTrainSuspects"}


def test_a_query_without_data_is_found(prometheus: PrometheusServer) -> None:
    assert prometheus.finite("sum(textmill_no_such_metric)") == 0
    assert prometheus.finite("0 / 0 * up") == 0
