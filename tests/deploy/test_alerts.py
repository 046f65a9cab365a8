"""Every alert fires when it should and is silent when it shouldn't, as Prometheus's own engine computes it."""

from pathlib import Path

import pytest
import yaml
from deploy_tools import ROOT
from rule_files import CASES, RULES, alerts, rule_file, run_cases

RUNBOOKS = ROOT / "docs" / "operations" / "runbooks"


def test_every_alert_has_a_case_both_ways() -> None:
    assert set(CASES) == set(alerts())
    for name, ways in CASES.items():
        assert ways["firing"], name
        assert ways["silent"], name


@pytest.mark.parametrize("name", sorted(CASES))
def test_fires_and_is_silent(name: str, tmp_path: Path) -> None:
    cases = [(name, way == "firing", case) for way, given in CASES[name].items() for case in given]
    assert run_cases(tmp_path, rule_file(name), cases) == ""


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    """The cases can fail: with its threshold out of reach, or without one, an alert fails its own."""
    case = CASES["TextmillVllmCacheFull"]
    source = next(path for path in RULES if path.name == "serving.yml").read_text()
    for threshold, way in (("> 9.5", "firing"), ("> 0.1", "silent")):
        broken = tmp_path / "serving.yml"
        broken.write_text(source.replace("> 0.95", threshold))
        assert "FAILED" in run_cases(tmp_path, broken, [("TextmillVllmCacheFull", way == "firing", case[way][0])])


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"runbooks/{name}.md"


def test_every_runbook_is_of_an_alert_and_has_its_parts() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(alerts())
    for path in RUNBOOKS.glob("Textmill*.md"):
        text = path.read_text()
        assert text.startswith(f"# {path.stem}\n")
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            "## What it means",
            "## Look",
            "## Mend",
        ]


def test_the_index_lists_every_runbook() -> None:
    index = (RUNBOOKS / "README.md").read_text()
    for name, rule in alerts().items():
        assert f"[{name}]({name}.md) | {rule['labels']['severity']} |" in index


def test_prometheus_for_compose_loads_the_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "compose.yml").read_text())
    assert config["rule_files"] == ["rules/*.yml"]
    jobs = {scrape["job_name"] for scrape in config["scrape_configs"]}
    assert {"textmill-ingest", "textmill-synth", "textmill-trainer", "textmill-gateway", "textmill-engine"} <= jobs
