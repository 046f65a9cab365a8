"""A real Prometheus that scrapes an installation from its start, so that tests can ask what an operator would see."""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from tests.ports import any_free

from textmill_cli.local.process import Child
from textmill_cli.local.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "deploy"))
from deploy_tools import prometheus_program  # noqa: E402

STEP_S = 5
_SCRAPE_S = 2
_RATE_INTERVAL = "30s"
"""What Grafana would put for $__rate_interval: at least four scrapes."""
_JOBS = {
    "ingest": "textmill-ingest",
    "synth": "textmill-synth",
    "trainer": "textmill-trainer",
    "inference": "textmill-gateway",
}


@dataclass
class PrometheusServer:
    url: str
    began: float
    child: Child

    def finite(self, query: str) -> int:
        """How many samples that are numbers the query has had since the server began."""
        return sum(math.isfinite(float(value)) for one in self.series(query) for _, value in one["values"])

    def series(self, query: str) -> list[dict[str, Any]]:
        """The query's series since the server began, a sample each ``STEP_S``, as Prometheus's API gives them."""
        asked = query.replace("$__rate_interval", _RATE_INTERVAL)
        fields = {"query": asked, "start": self.began, "end": time.time(), "step": f"{STEP_S}s"}
        series: list[dict[str, Any]] = self._get("/api/v1/query_range", fields)["result"]
        return series

    def targets_down(self) -> list[str]:
        targets = self._get("/api/v1/targets", {"state": "active"})["activeTargets"]
        return [f"{t['labels']['job']}: {t['lastError']}" for t in targets if t["health"] != "up"]

    def targets_up(self) -> int:
        return sum(t["health"] == "up" for t in self._get("/api/v1/targets", {"state": "active"})["activeTargets"])

    def rule_faults(self) -> list[str]:
        """Rules whose evaluation failed; promtool can't know what real series do to a join."""
        groups = self._get("/api/v1/rules", {})["groups"]
        return [f"{r['name']}: {r['lastError']}" for g in groups for r in g["rules"] if r["health"] == "err"]

    def firing(self) -> list[str]:
        return [a["labels"]["alertname"] for a in self._get("/api/v1/alerts", {})["alerts"] if a["state"] == "firing"]

    def _get(self, path: str, fields: dict[str, Any]) -> Any:
        answer = urllib3.request("GET", self.url + path, fields=fields, timeout=30, retries=False)
        body = json.loads(answer.data)
        assert body["status"] == "success", body
        return body["data"]


def start(folder: Path, targets: dict[str, str]) -> PrometheusServer:
    """Scrape ``targets`` (job to host:port) with our own rules. Skips where there is no Prometheus to be had."""
    program = prometheus_program("prometheus")
    config = {
        "global": {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": "5s"},
        "rule_files": [str(ROOT / "deploy" / "prometheus" / "rules" / "*.yml")],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = any_free()
    command = [
        program, f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    child = Child("prometheus", command, folder / "prometheus.log")
    server = PrometheusServer(f"http://127.0.0.1:{port}", time.time(), child)
    child.start()
    wait_until(lambda: _ready(server.url), 30, "Prometheus")
    # It finds its targets some five seconds later, and a job that has ended by then has never grown a counter.
    wait_until(lambda: server.targets_up() == len(targets), 60, "Prometheus's first look at each service")
    return server


def targets_of(urls: dict[str, str]) -> dict[str, str]:
    """The services of ``textmill up``, under the job names that they have everywhere."""
    return {job: urls[service].removeprefix("http://") for service, job in _JOBS.items()}


def _ready(url: str) -> bool:
    try:
        return urllib3.request("GET", f"{url}/-/ready", timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False
