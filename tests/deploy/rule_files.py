"""The alert rules as data, and promtool's tests written from tests/deploy/alerts.yaml."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from deploy_tools import ROOT, prometheus_program

RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
CASES: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())


def rules() -> list[dict[str, Any]]:
    """All rules of all files."""
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def rule_file(alert: str) -> Path:
    return next(path for path in RULES if f"alert: {alert}\n" in path.read_text())


def run_cases(folder: Path, rules_of: Path, cases: list[tuple[str, bool, dict[str, Any]]]) -> str:
    """promtool's words on the cases: (alert, whether it fires, case). Empty if all hold."""
    paths = []
    for number, case in enumerate(cases):
        interval = case[2].get("interval", "1m")
        test = {
            "rule_files": [str(rules_of)], "evaluation_interval": interval, "tests": [_promtool_test(*case, interval)],
        }  # fmt: skip
        paths.append(folder / f"case-{number}.yml")
        paths[-1].write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [prometheus_program("promtool"), "test", "rules", *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _promtool_test(alert: str, fires: bool, case: dict[str, Any], interval: str) -> dict[str, Any]:
    """Counts what Prometheus itself says is firing, so that a case needn't repeat labels and annotations."""
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) > bool 0'
    return {
        "name": f"{alert} {'fires' if fires else 'is silent'} at {case['at']}",
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in case["series"].items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": case["at"], "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}
        ],
    }
