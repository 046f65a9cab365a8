"""'textmill deployments': which model answers to which name; canaries, shadows, and the way back."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.table import Table

from textmill.contracts.jobs import DeployJob, JobView
from textmill.contracts.serving import Deployment
from textmill.errors import BadRequest
from textmill_cli import output
from textmill_cli.client import Client
from textmill_cli.follow import follow
from textmill_cli.settings import CliSettings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Name = Annotated[str, typer.Argument(help="The name that clients ask for.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Submit and return.")]
Percent = Annotated[float | None, typer.Option(min=0, max=100)]


def list_all(as_json: AsJson = False) -> None:
    """All served names."""
    items = Client(CliSettings()).get("inference", "/v1/deployments")["items"]
    if as_json:
        output.print_json(items)
    else:
        output.console.print(_names(items))


def show(name: Name, as_json: AsJson = False) -> None:
    """One name: its versions, what was counted of them, and those before."""
    _show(_call("GET", name), as_json)


def deploy(
    name: Name,
    model: Annotated[str, typer.Argument(help="A published model, mdl_...")],
    canary_percent: Percent = None,
    shadow_percent: Percent = None,
    unmerged: Annotated[bool, typer.Option("--unmerged", help="Its adapter, on the base model's engine.")] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Let a name answer with a model: all of its requests, some of them (canary), or copies only (shadow)."""
    try:
        job = DeployJob(
            name=name,
            model_id=model,
            canary_percent=canary_percent,
            shadow_percent=shadow_percent,
            unmerged=unmerged,
        )
    except ValidationError as exc:
        raise BadRequest("; ".join(error["msg"] for error in exc.errors())) from exc
    client = Client(CliSettings())
    _follow(client, client.submit(job), detach, as_json)


def adjust(name: Name, canary_percent: Percent = None, shadow_percent: Percent = None, as_json: AsJson = False) -> None:
    """Give the canary or the shadow another share of the requests."""
    given = {"canary_percent": canary_percent, "shadow_percent": shadow_percent}
    body = {field: percent for field, percent in given.items() if percent is not None}
    if not body:
        raise BadRequest("give --canary-percent or --shadow-percent")
    _show(_call("PATCH", name, body), as_json)


def promote(name: Name, as_json: AsJson = False) -> None:
    """Let the canary answer all requests."""
    canary = _state(name).canary
    _show(_call("POST", f"{name}/promote", {"deployment_id": canary.deployment_id} if canary else None), as_json)


def abort(
    name: Name,
    role: Annotated[Literal["canary", "shadow"] | None, typer.Option(help="Default: the canary, if any.")] = None,
    as_json: AsJson = False,
) -> None:
    """End the canary or the shadow."""
    _show(_call("POST", f"{name}/abort" + (f"?role={role}" if role else "")), as_json)


def rollback(name: Name, detach: Detach = False, as_json: AsJson = False) -> None:
    """Let a name answer with the model before."""
    found = _call("POST", f"{name}/rollback", {"deployment_id": _state(name).deployment_id})
    if "job" in found:
        _follow(Client(CliSettings()), JobView.model_validate(found), detach, as_json)
    else:
        _show(found, as_json)


def drop(name: Name, as_json: AsJson = False) -> None:
    """Answer to a name no more. Answers under way end."""
    _call("DELETE", name)
    if as_json:
        output.print_json({"dropped": name})
    else:
        output.console.print(f"dropped {name}", highlight=False)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "list": list_all, "show": show, "deploy": deploy, "adjust": adjust, "promote": promote, "abort": abort,
    "rollback": rollback, "drop": drop,
}  # fmt: skip


def _call(method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = json.dumps(body).encode() if body is not None else None
    answer = Client(CliSettings()).request(method, "inference", f"/v1/deployments/{path}", data, headers)
    return json.loads(answer) if answer else None


def _state(name: str) -> Deployment:
    """What is to be changed, by id: repeating a command that got no answer then changes nothing more."""
    found = _call("GET", name)["deployment"]
    if found is None:
        raise BadRequest(f"{name!r} belongs to the service's settings, and isn't deployed")
    return Deployment.model_validate(found)


def _follow(client: Client, view: JobView, detach: bool, as_json: bool) -> None:
    if as_json:
        output.print_json(view.model_dump(mode="json"))
    elif detach:
        output.console.print(output.jobs([view]))
    else:
        follow(client, view.job.job_id, output.console)


def _show(found: Any, as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    output.console.print(_versions(found))
    if found["deployment"] is None:
        return
    state = Deployment.model_validate(found["deployment"])
    for version in state.previous[:1]:
        output.console.print(f"before: {version.model_id}, until {state.created_at:%Y-%m-%d %H:%M}", highlight=False)
    if (end := state.last_trial) is not None:
        how = end.outcome.replace("_", " ")
        why = f": {end.reason}" if end.reason else ""
        output.console.print(f"last {end.role}: {end.model_id} {how}{why}", markup=False, highlight=False)


def _names(items: Sequence[Any]) -> Table:
    table = Table("name", "model", "ready", "canary", "shadow", "trouble", box=None, pad_edge=False)
    for item in items:
        state = Deployment.model_validate(item["deployment"]) if item["deployment"] else None
        shares = [
            f"{trial.percent:g} %" if trial else "" for trial in ((state.canary, state.shadow) if state else ())
        ] or ["", ""]
        table.add_row(
            item["name"], state.model_id if state else "", "yes" if item["ready"] else "no", *shares, item["trouble"]
        )
    return table


def _versions(found: Any) -> Table:
    table = Table("role", "model", "ready", "in flight", "requests", "errors", "trouble", box=None, pad_edge=False)
    for version in found["versions"]:
        model = (version["model_id"] or "") + (" (adapter)" if version["adapter"] else "")
        table.add_row(
            version["role"], model, "yes" if version["ready"] else "no", str(version["in_flight"]),
            str(version["requests"]), str(version["errors"]), version["trouble"],
        )  # fmt: skip
    return table
