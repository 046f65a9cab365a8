"""The real generator under a real load test: through the command line, and a search against the null server."""

import json
import os
import subprocess
import sys

import pytest

from textmill.contracts.capacity import CapacityOptions
from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.load import Expectation, Fixed, MadeUpPrompts, Traffic
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.slo import Limit, Slo
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.loadtest.calibration import null_server
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.job import Loadtester

KEY = "sk-the-very-secret-key"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def textmill(*arguments, **environ):
    command = [sys.executable, "-m", "textmill_cli.main", "loadtest", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=500, check=False
    )


def test_the_command_line_tests_a_server_and_saves_a_report_without_the_key(engine_server, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("prompts: ['Why?']\nrequests_per_level: 12\nwarm_up_s: 0\n")
    out = tmp_path / "out"
    ran = textmill(
        f"{engine_server.url}/v1", "-m", "small", "-c", "1,2", "-s", "20", "--spec", str(spec), "-o", str(out),
        "--slo", "e2e p50 60s", "--key-env", "MY_VENDORS_KEY", MY_VENDORS_KEY=KEY,
    )  # fmt: skip
    report = LoadtestReport.model_validate_json((out / "report.json").read_bytes())
    assert ran.returncode == (3 if report.verdict.answer == "invalid" else 0), ran.stderr
    assert report.verdict.headline in " ".join(ran.stdout.split())
    assert [(level.load, level.succeeded) for level in report.levels] == [(1, 12), (2, 12)]
    assert {headers.get("authorization") for headers in engine_server.headers} == {f"Bearer {KEY}"}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"report.html", "report.json", "report.csv", "series.json", "0001.json"}
    assert not any(KEY in path.read_text() for path in files)
    assert KEY not in ran.stdout + ran.stderr


def test_the_command_line_names_mistakes_in_one_line(tmp_path):
    url = "http://127.0.0.1:9"
    for arguments, message in (
        ((url, "-m", "m", "--slo", "fast"), "is no limit"),
        ((url, "-m", "m", "-c", "many"), "no list of numbers"),
        ((url, "-m", "m", "--holds", "10", "--versus-model", "b"), "versus compares set loads"),
        ((url, "-m", "m", "--key-env", "NO_SUCH_VARIABLE", "-c", "1"), "no variable NO_SUCH_VARIABLE"),
        ((url,), "can't be reached"),
    ):
        ran = textmill(*arguments, "-o", str(tmp_path / "out"))
        assert ran.returncode == 1
        assert message in ran.stderr.replace("\n", " "), ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_search_against_the_null_server_never_says_no():
    """It holds anything; a machine too busy to load it makes stages invalid, and those are no evidence."""
    slo = Slo(limits=(Limit(measure="e2e", percent=50, ms=60_000),))
    traffic = Traffic(prompts=MadeUpPrompts(lengths=Fixed(value=16)), output=Fixed(value=4))
    tester = Loadtester("", generator=lambda key, traces: Generator(calibrate_s=0.5, workers=1))
    with null_server(Expectation(ttft_ms=10, itl_ms=2), None) as url:
        job = LoadtestJob(
            model="null", target_url=url, slo=slo, traffic=traffic, seconds_per_level=1, warm_up_s=0.2,
            capacity=CapacityOptions(wanted=4, max_load=8, quick=True, max_stages=8),
        )  # fmt: skip
        output = tester(job, JobContext(MemoryStore(), 1, "scratch/"))
    report = LoadtestReport.model_validate(output.manifest)
    assert report.capacity.verdict in ("yes", "undecided")
    assert report.capacity.high is None
    assert report.capacity.verdict == "undecided" or report.capacity.low == 4
    assert all(level.errors == {} for level in report.levels)
    assert json.dumps(output.manifest)
