"""The textmill command. Each command is a few lines over the module that does the work."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from textmill import tracing
from textmill.contracts.jobs import JOB_KINDS, JobView
from textmill.errors import BadRequest, TextmillError
from textmill_cli import chat as chatting
from textmill_cli import compare, deployments, keys, output, preflight, report, traffic
from textmill_cli import demo as demonstration
from textmill_cli import loadtest as loadtesting
from textmill_cli.backup_command import restore_backup, take_backup
from textmill_cli.client import Client
from textmill_cli.cluster_doctor import examine_cluster
from textmill_cli.doctor import examine
from textmill_cli.fault_llm.command import fault_llm
from textmill_cli.follow import explain_failure, follow, watch
from textmill_cli.local import up as local
from textmill_cli.plan import chain_of
from textmill_cli.recipe import load
from textmill_cli.settings import SERVICE_OF_KIND, CliSettings

app = typer.Typer(help="Private raw text in, a served and measured language model out.", no_args_is_help=True)
jobs_app = typer.Typer(help="Look at jobs, cancel them, run failed ones again.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
deployments_app = typer.Typer(help="Which model answers to which name, and new versions.", no_args_is_help=True)
app.add_typer(deployments_app, name="deployments")
keys_app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
compare_app = typer.Typer(help="Models side by side: answers, blind votes, ratings.", no_args_is_help=True)
app.add_typer(compare_app, name="compare")
traffic_app = typer.Typer(help="The request log, and what is made of it.", no_args_is_help=True)
app.add_typer(traffic_app, name="traffic")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextmanager
def _clear_errors() -> Iterator[None]:
    """An error of ours is a message and exit code 1, never a traceback."""
    try:
        yield
    except TextmillError as exc:
        output.errors.print(f"[red]{type(exc).__name__}[/red]: ", end="")
        output.errors.print(str(exc), markup=False, highlight=False)
        raise typer.Exit(1) from exc


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start all services and the servers they need on this machine. Ctrl-C stops all."""
    settings = CliSettings()
    with _clear_errors():
        if detach or local.supervisor_pid(settings) is not None:
            local.start_detached(settings)
            local.wait_ready(settings, 300, lambda found: None)
            _show_states(settings, as_json)
            return

        def tell(line: str) -> None:
            output.errors.print(line, markup=False, highlight=False)

        tell("starting; the engine takes about a minute")
        local.run_here(settings, tell, lambda: _show_states(settings, as_json))


def _show_states(settings: CliSettings, as_json: bool) -> None:
    found = local.states(settings)
    if as_json:
        output.print_json([vars(state) for state in found])
    else:
        output.console.print(output.addresses(found))


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop what 'up' started. The data stays."""
    with _clear_errors():
        stopped = local.stop(CliSettings())
    if as_json:
        output.print_json({"stopped": stopped})
    else:
        output.console.print("stopped" if stopped else "nothing was up")


@app.command()
def status(as_json: AsJson = False) -> None:
    """What is running, and the latest jobs."""
    settings = CliSettings()
    found = local.states(settings)
    with _clear_errors():
        views = _all_jobs(Client(settings))[-12:] if found else []
    if as_json:
        processes = [vars(state) for state in found]
        output.print_json({"processes": processes, "jobs": [v.model_dump(mode="json") for v in views]})
        return
    if not found:
        output.console.print("nothing is up; start with: textmill up")
        return
    output.console.print(output.addresses(found))
    output.console.print(output.jobs(views))


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A service or server, e.g. synth.")] = "up",
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 40,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing.")] = False,
    as_json: AsJson = False,
) -> None:
    """The end of a log."""
    settings = CliSettings()
    with _clear_errors():
        file = local.log_file(settings, name)
        if not file.exists():
            known = ", ".join(sorted(p.stem for p in settings.logs.glob("*.log"))) or "none yet"
            raise BadRequest(f"no log of {name!r}; there are: {known}")
    with file.open(encoding="utf-8", errors="replace") as log:
        tail = log.read().splitlines()[-lines:]
        if as_json:
            output.print_json(tail)
            return
        print("\n".join(tail))
        while follow_it:
            print(log.read(), end="", flush=True)
            time.sleep(0.3)


@app.command()
def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="An installation elsewhere, by its URLs.")] = False,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Where kubectl finds it.")] = "textmill",
    as_json: AsJson = False,
) -> None:
    """What is missing or misconfigured, and the command that mends it. Exit code 1 if anything is."""
    found = examine_cluster(CliSettings(), namespace) if cluster else examine(CliSettings())
    if as_json:
        output.print_json([vars(finding) for finding in found])
    else:
        output.console.print(output.findings(found))
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


@app.command()
def check(recipe: Path, as_json: AsJson = False) -> None:
    """Validate a recipe and say what it would do."""
    with _clear_errors():
        loaded = load(recipe)
    first = chain_of(loaded, [])
    stages = [job.kind for job in (first, *first.then)]
    if as_json:
        output.print_json({"name": loaded.name, "files": [str(p) for p in loaded.files()], "stages": stages})
    else:
        output.console.print(f"{loaded.name}: {len(loaded.files())} files, then {' → '.join(stages)}")


@app.command()
def run(
    recipe: Path,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit and return.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a recipe and follow it. It goes on if you close this: 'textmill follow JOB' finds it again."""
    with _clear_errors():
        client = Client(CliSettings())
        view = submit(client, recipe)
        if detach:
            _print_view(view, as_json)
            return
        _follow_and_print(client, view.job.job_id, as_json)


def submit(client: Client, path: Path) -> JobView:
    """Upload the recipe's files and submit its chain of jobs."""
    recipe = load(path)
    tracing.configure("cli")
    with tracing.span(f"run {recipe.name}"):
        documents = [client.upload(file, file.relative_to(path.parent).as_posix()) for file in recipe.files()]
        return client.submit(chain_of(recipe, [document.document_id for document in documents]))


@app.command("preflight")
def preflight_command(
    recipe: Path,
    passages: Annotated[int, typer.Option("--passages", "-p", min=1, max=1000, help="How many to try.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Try a recipe on a few passages: what the whole will take, what it will yield, what the model knows already."""
    with _clear_errors():
        found = preflight.run(CliSettings(), recipe, passages, output.errors if as_json else output.console)
        if as_json:
            output.print_json(found.model_dump(mode="json"))
        else:
            preflight.show(found, load(recipe), recipe, output.console)


@app.command("follow")
def follow_command(job: str, as_json: AsJson = False) -> None:
    """Watch a job and those that follow it."""
    with _clear_errors():
        _follow_and_print(Client(CliSettings()), job, as_json)


def _follow_and_print(client: Client, job_id: str, as_json: bool) -> None:
    if not as_json:
        output.console.print(f"following {job_id}; Ctrl-C leaves it running", highlight=False)
        follow(client, job_id, output.console)
        return
    last = None
    for view in watch(client, job_id):
        if view.finished:
            print(json.dumps(view.model_dump(mode="json"), ensure_ascii=False), flush=True)
        last = view
    if last is not None and last.state != "succeeded":
        raise typer.Exit(1)


@app.command("report")
def report_command(
    job: Annotated[str, typer.Argument(help="The first job of a run.")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where report.html and report.json go.")] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Write the report of a run."""
    with _clear_errors():
        found = report.gather(Client(CliSettings()), job)
        page = report.write(found, folder, job, None)
    if as_json:
        print((folder / "report.json").read_text(encoding="utf-8"))
    else:
        output.console.print(f"report: {page.resolve()}", highlight=False)


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="Ask once; without it, a conversation.")] = "",
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Default: all that are served.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the served models, base and tuned side by side."""
    settings = CliSettings()
    with _clear_errors():
        models = chatting.pick(chatting.served_models(settings), model or [])
        conversations = [chatting.Conversation(name) for name in models]
        console = output.errors if as_json else output.console
        if question:
            chatting.ask_all(settings, conversations, question, console)
            if as_json:
                output.print_json({c.model: c.error or c.answer for c in conversations})
            return
        while text := typer.prompt("you", default="", show_default=False):
            chatting.ask_all(settings, conversations, text, console)


@app.command()
def demo(
    recipe: Annotated[Path, typer.Option(help="What to run.")] = Path("examples/zhouyi/recipe.yaml"),
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where the report goes.")] = Path("demo-report"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up afterwards.")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole job: start everything, run the recipe, write the report, stop everything."""
    with _clear_errors():
        demonstration.play(CliSettings(), recipe, folder, keep, output.errors if as_json else output.console, submit)
    if as_json:
        print((folder / "report.json").read_text(encoding="utf-8"))


app.command("backup")(_clear_errors()(take_backup))
app.command("restore")(_clear_errors()(restore_backup))
app.command("fault-llm")(_clear_errors()(fault_llm))
app.command("loadtest")(_clear_errors()(loadtesting.loadtest))
for _name, _command in deployments.COMMANDS.items():
    deployments_app.command(_name)(_clear_errors()(_command))
app.command("rollback")(_clear_errors()(deployments.rollback))
for _name, _command in keys.COMMANDS.items():
    keys_app.command(_name)(_clear_errors()(_command))
for _name, _command in compare.COMMANDS.items():
    compare_app.command(_name)(_clear_errors()(_command))
for _name, _command in traffic.COMMANDS.items():
    traffic_app.command(_name)(_clear_errors()(_command))


@jobs_app.command("list")
def jobs_list(as_json: AsJson = False) -> None:
    """All jobs, oldest first."""
    with _clear_errors():
        _print_views(_all_jobs(Client(CliSettings())), as_json)


@jobs_app.command("show")
def jobs_show(job: str, as_json: AsJson = False) -> None:
    """One job."""
    with _clear_errors():
        view = Client(CliSettings()).find_job(job)
    _print_view(view, as_json)
    if not as_json and view.state == "failed":
        output.console.print(explain_failure(view), markup=False, highlight=False)


@jobs_app.command("cancel")
def jobs_cancel(job: str, as_json: AsJson = False) -> None:
    """Ask a job to end."""
    _act(job, "cancel", as_json)


@jobs_app.command("replay")
def jobs_replay(job: str, as_json: AsJson = False) -> None:
    """Run a failed or cancelled job again, and what follows it."""
    _act(job, "replay", as_json)


def _act(job_id: str, action: str, as_json: bool) -> None:
    with _clear_errors():
        client = Client(CliSettings())
        kind = client.find_job(job_id).job.kind
        answer = client.request("POST", SERVICE_OF_KIND[kind], f"/v1/jobs/{job_id}/{action}")
    _print_view(JobView.model_validate_json(answer), as_json)


def _all_jobs(client: Client) -> list[JobView]:
    views: list[JobView] = []
    for kind in JOB_KINDS:
        page = client.get(SERVICE_OF_KIND[kind], f"/v1/jobs?kind={kind}&limit=500")
        views += [JobView.model_validate(item) for item in page["items"]]
    return sorted(views, key=lambda view: view.job.submitted_at)


def _print_views(views: list[JobView], as_json: bool) -> None:
    if as_json:
        output.print_json([view.model_dump(mode="json") for view in views])
    else:
        output.console.print(output.jobs(views))


def _print_view(view: JobView, as_json: bool) -> None:
    if as_json:
        output.print_json(view.model_dump(mode="json"))
    else:
        output.console.print(output.jobs([view]))


if __name__ == "__main__":
    app()
