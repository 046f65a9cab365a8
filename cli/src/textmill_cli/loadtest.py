"""``textmill loadtest``: asks how much load an OpenAI-compatible server bears, shows it live, saves the report.

With a URL the test runs here, in a process of its own, and needs no service; without one (or with --submit) it is a job
of the inference service, which tests its own gateway unless it is told another target.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import urllib3
import yaml
from pydantic import ValidationError

from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.loadoptions import LoadtestEvent
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.slo import Limit
from textmill.errors import BadRequest, DependencyDown, JobFailed
from textmill_cli import output
from textmill_cli.client import Client
from textmill_cli.loadtest_events import follow_job
from textmill_cli.loadtest_view import LiveTable, print_verdict
from textmill_cli.settings import CliSettings

EXIT_CODES = {"yes": 0, "measured": 0, "no": 1, "undecided": 3, "invalid": 3}
_FILES = ("report.html", "report.csv", "series.json")


def loadtest(
    url: Annotated[str, typer.Argument(help="The target, with or without /v1. Default: our own gateway.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Default: the only one that the target serves.")] = "",
    concurrency: Annotated[str, typer.Option("--concurrency", "-c", help="Loads to sweep, e.g. 1,4,16,64.")] = "",
    rate: Annotated[str, typer.Option("--rate", "-r", help="Requests per second to sweep, e.g. 1,5,10.")] = "",
    wanted: Annotated[float, typer.Option("--holds", help="Does it hold so much? Searches for the capacity.")] = 0,
    capacity: Annotated[bool, typer.Option("--capacity", help="Search for the highest load within the SLO.")] = False,
    by_rate: Annotated[bool, typer.Option("--by-rate", help="Search over requests per second.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With --holds: the verdict alone.")] = False,
    slo: Annotated[list[str] | None, typer.Option("--slo", help="E.g. 'ttft p99 500ms'. Several may be given.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="How long each stage counts.")] = 20.0,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Make up prompts of this length.")] = 0,
    output_tokens: Annotated[int, typer.Option("--output-tokens", help="How many tokens to ask for.")] = 32,
    versus: Annotated[str, typer.Option("--versus", help="A second target to compare with, in turns.")] = "",
    versus_model: Annotated[str, typer.Option("--versus-model", help="Its model. Default: the same name.")] = "",
    key_env: Annotated[str, typer.Option("--key-env", help="The variable that holds the target's API key.")] = "",
    spec: Annotated[Path | None, typer.Option("--spec", help="YAML with any other options, see the docs.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Run it as a job of the inference service.")] = False,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where the report goes.")] = Path("loadtest"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
) -> None:
    """How much load a server bears: a sweep, or the capacity within an SLO. Exit code 1 for no, 3 for undecided."""
    settings = CliSettings()
    as_job = submit or not url
    options: dict[str, Any] = _spec(spec)
    options |= _loads(concurrency, rate, wanted, capacity, by_rate, quick)
    options |= _traffic(prompt_tokens, output_tokens) if prompt_tokens else {"max_tokens": output_tokens}
    options.setdefault("seconds_per_level", seconds)
    if slo:
        options["slo"] = {"limits": [_limit(text) for text in slo]}
    if url:
        options["target_url"] = url.rstrip("/")
    if key_env:
        options["key_from"] = {"env": key_env}
    options["model"] = model or options.get("model") or _only_model(url or settings.urls()["inference"], key_env)
    if versus or versus_model:
        options["versus"] = {"target_url": versus or None, "model": versus_model or options["model"]}
    job = _job(options)
    with LiveTable(output.errors if as_json else output.console) as table:
        report = _as_job(job, settings, folder, table) if as_job else _here(job, folder, table)
    if as_json:
        print((folder / "report.json").read_text(encoding="utf-8"))
    else:
        print_verdict(report, folder, output.console)
    raise typer.Exit(EXIT_CODES[report.verdict.answer])


# -- what is asked -----------------------------------------------------------------------------------------------------


def _spec(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise BadRequest(f"{path} can't be read as YAML: {exc}") from exc
    if not isinstance(found, dict):
        raise BadRequest(f"{path} holds no options; write keys with values, such as 'seconds_per_level: 30'")
    return found


def _loads(concurrency: str, rate: str, wanted: float, capacity: bool, by_rate: bool, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if concurrency:
        found["concurrencies"] = [int(n) for n in _numbers(concurrency, "--concurrency")]
    if rate:
        found["rates"] = _numbers(rate, "--rate")
    if capacity or wanted:
        kind = "rate" if by_rate else "concurrency"
        found["capacity"] = {"kind": kind, "quick": quick} | ({"wanted": wanted} if wanted else {})
        if wanted > 4_096 / 2:
            found["capacity"]["max_load"] = 4 * wanted
    return found


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as exc:
        raise BadRequest(f"{option} {text!r} is no list of numbers; write them like 1,4,16") from exc


def _traffic(prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    lengths = {"kind": "fixed", "value": prompt_tokens}
    return {
        "traffic": {
            "prompts": {"kind": "made_up", "lengths": lengths},
            "output": {"kind": "fixed", "value": output_tokens},
        }
    }


def _limit(text: str) -> dict[str, Any]:
    try:
        return Limit.parse(text).model_dump()
    except ValueError as exc:
        raise BadRequest(f"--slo: {exc}") from exc


def _job(options: dict[str, Any]) -> LoadtestJob:
    try:
        return LoadtestJob.model_validate(options)
    except ValidationError as exc:
        told = [f"{'.'.join(map(str, error['loc'])) or 'options'}: {error['msg']}" for error in exc.errors()]
        raise BadRequest("\n".join(told)) from exc


def _only_model(url: str, key_env: str) -> str:
    """Raises ``BadRequest`` unless the target serves just one."""
    key = os.environ.get(key_env, "") if key_env else CliSettings().api_key.get_secret_value()
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib3.PoolManager(retries=False, timeout=10) as http:
            answer = http.request("GET", f"{base}/v1/models", headers=headers, redirect=False)
        names = [model["id"] for model in json.loads(answer.data)["data"]]
    except urllib3.exceptions.HTTPError as exc:
        raise DependencyDown(f"{base} can't be reached; is it up?") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BadRequest(
            f"{base}/v1/models answers {answer.status} and no list of models; name one with --model"
        ) from exc
    if len(names) != 1:
        raise BadRequest(f"{base} serves {', '.join(names) or 'no model'}; name one with --model")
    return str(names[0])


# -- how it is run -----------------------------------------------------------------------------------------------------


def _here(job: LoadtestJob, folder: Path, table: LiveTable) -> LoadtestReport:
    """In a process of its own. Ctrl-C ends it in order; the stages that were done stay in the folder."""
    failed = None
    with _child(job, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b'{"error"'):
                failed = json.loads(line)["error"]["message"]
                continue
            table.show(LoadtestEvent.model_validate_json(line))
    if failed is not None or process.returncode != 0:
        raise JobFailed(failed or f"the load test ended with exit code {process.returncode}; its error stands above")
    return LoadtestReport.model_validate_json((folder / "report.json").read_bytes())


@contextmanager
def _child(job: LoadtestJob, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "textmill_inference.loadtest.standalone", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(job.to_json())
        yield process
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()


def _as_job(job: LoadtestJob, settings: CliSettings, folder: Path, table: LiveTable) -> LoadtestReport:
    client = Client(settings)
    view = client.submit(job)
    submitted = view.job
    assert isinstance(submitted, LoadtestJob)
    path = f"/v1/loadtests/{submitted.loadtest_id}"
    for event in follow_job(client, path):
        table.show(event)
    found = client.get("inference", path)
    if found["report"] is None:
        raise JobFailed(f"load test {submitted.loadtest_id} {found['state']}: {found['error'] or 'no report'}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).write_bytes(client.request("GET", "inference", f"{path}/{name}"))
    (folder / "report.json").write_text(json.dumps(found["report"], indent=1), encoding="utf-8")
    return LoadtestReport.model_validate(found["report"])
