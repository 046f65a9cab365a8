"""'textmill traffic': who is logged, what was, and what is made of it: traces, records, preference pairs."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

import typer
from pydantic import BaseModel, ValidationError
from rich.table import Table

from textmill.contracts.preferences import PreferencesManifest
from textmill.contracts.traffic import (
    Deletion,
    Exchange,
    Feedback,
    HarvestManifest,
    LogRule,
    NewFeedback,
    NewHarvest,
    NewTrace,
    TraceManifest,
    TrafficFilter,
    TrafficPolicy,
)
from textmill.errors import BadRequest
from textmill_cli import output
from textmill_cli.client import Client
from textmill_cli.follow import follow
from textmill_cli.settings import CliSettings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Model = Annotated[str | None, typer.Option(help="Only what this model answered.")]
Group = Annotated[str | None, typer.Option(help="Only what keys of this group asked.")]
Since = Annotated[datetime | None, typer.Option(help="Only from here on, UTC.")]
Until = Annotated[datetime | None, typer.Option(help="Only before this, UTC.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="At most so many exchanges.")]
Request = Annotated[str, typer.Argument(help="The x-request-id of the answer.")]
ContractT = TypeVar("ContractT", bound=BaseModel)
_PREFERENCES_TAKEN = 100_000


def log(
    share: Annotated[float, typer.Option(min=0, max=1, help="Of all requests, in thousandths.")] = 1.0,
    model: Model = None,
    group: Group = None,
    days: Annotated[int | None, typer.Option(min=1, help="How long anything is kept.")] = None,
    as_json: AsJson = False,
) -> None:
    """Log a share of the requests; a rule for the same model and group is replaced. '--share 0' leaves them out."""
    known = _policy()
    rule = _valid(LogRule, model=model, group=group, share=share)
    others = tuple(r for r in known.rules if (r.model, r.group) != (model, group))
    # The first rule that covers a request decides, so what names more comes first.
    rules = tuple(sorted((rule, *others), key=lambda r: (r.model is None) + (r.group is None)))
    _put_policy(known.model_copy(update={"rules": rules, "retention_days": days or known.retention_days}), as_json)


def off(as_json: AsJson = False) -> None:
    """Log nothing any more. What was logged stays until its time is over."""
    _put_policy(_policy().model_copy(update={"rules": ()}), as_json)


def policy(as_json: AsJson = False) -> None:
    """Who is logged, and for how long."""
    _show_policy(_policy(), as_json)


def show(
    model: Model = None,
    group: Group = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Logged exchanges, oldest first."""
    where = _filter(TrafficFilter, model, group, since, until, min(limit, 1_000))
    page: Any = Client(CliSettings()).get("inference", f"/v1/traffic/exchanges?{_query(where)}")
    if as_json:
        output.print_json(page["items"])
        return
    table = Table("request", "at", "model", "group", "status", "asked", "answered", box=None)
    for one in (Exchange.model_validate(item) for item in page["items"]):
        asked = one.prompt or str(one.messages[-1].get("content") if one.messages else "")
        cells = (one.request_id, f"{one.at:%m-%d %H:%M:%S}", one.model, one.group, str(one.status), asked, one.answer)
        table.add_row(*(cell[:60].replace("\n", " ") for cell in cells))
    output.console.print(table)


def feedback(
    request: Request,
    up: Annotated[bool, typer.Option("--up", help="The answer is right.")] = False,
    down: Annotated[bool, typer.Option("--down", help="The answer is wrong.")] = False,
    answer: Annotated[str | None, typer.Option(help="What it should have said.")] = None,
    comment: Annotated[str | None, typer.Option(help="Anything else.")] = None,
    author: Annotated[str, typer.Option(help="Who says so.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what you think of an answer."""
    if up and down:
        raise BadRequest("--up and --down exclude each other; give one of them")
    rating = "up" if up else "down" if down else None
    new = _valid(
        NewFeedback, request_id=request, rating=rating, corrected_answer=answer, comment=comment, author=author
    )
    kept = Feedback.model_validate_json(_call("POST", "/v1/feedback", new))
    _print(kept, as_json, f"kept as {kept.feedback_id}")


def trace(
    model: Model = None,
    group: Group = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 10_000,
    messages: Annotated[bool, typer.Option("--messages", help="With the prompts, not only their lengths.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the trace here, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a replay trace for a load test."""
    new = _filter(NewTrace, model, group, since, until, limit, with_messages=messages)
    made = TraceManifest.model_validate_json(_call("POST", "/v1/traffic/traces", new))
    if out is not None:
        out.write_bytes(_call("GET", f"/v1/traffic/traces/{made.trace_id}/lines"))
    left = f", left out {made.left_out}" if made.left_out else ""
    cut = "; the log has more than --limit" if made.truncated else ""
    load = f'{{"kind": "trace", "key": "{made.lines_key}"}}'
    told = f"{made.trace_id}: {made.requests} requests over {made.seconds:.0f} s{left}{cut}\nas a load: {load}"
    _print(made, as_json, told)


def harvest(
    model: Model = None,
    group: Group = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 10_000,
    corrected_only: Annotated[bool, typer.Option("--corrected-only", help="Leave mere approval out.")] = False,
    with_redacted: Annotated[bool, typer.Option("--with-redacted", help="Records with placeholders, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of what people approved or corrected."""
    take = ("corrected",) if corrected_only else ("corrected", "approved")
    new = _filter(NewHarvest, model, group, since, until, limit, take=take, with_redacted=with_redacted)
    made = HarvestManifest.model_validate_json(_call("POST", "/v1/traffic/documents", new))
    console = output.errors if as_json else output.console
    console.print(f"of {made.looked_at} exchanges taken {made.taken}, left out {made.left_out}", highlight=False)
    follow(Client(CliSettings()), made.job_id, console)
    _print(made, as_json, f"dataset {made.dataset_id}")


def preferences(
    model: Model = None,
    group: Group = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = _PREFERENCES_TAKEN,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the pairs here, and send them nowhere.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send the trainer a preference pair for each correction, and for right and wrong answers to the same question."""
    where = _filter(TrafficFilter, model, group, since, until, limit)
    lines = _call("GET", f"/v1/traffic/preferences?{_query(where)}")
    if out is not None:
        out.write_bytes(lines)
        output.errors.print(f"{len(lines.splitlines())} pairs", highlight=False)
        return
    if not lines:
        raise BadRequest("no pairs: nobody corrected an answer, or called answers to the same question right and wrong")
    made = PreferencesManifest.model_validate_json(
        Client(CliSettings()).request("POST", "trainer", "/v1/preferences", lines)
    )
    _print(
        made, as_json, f"{made.pairs} preference pairs in {made.preferences_id}; train on them with the objective dpo"
    )


def delete(request: Request, as_json: AsJson = False) -> None:
    """Delete a request with its answer and feedback."""
    gone = Deletion.model_validate_json(_call("DELETE", f"/v1/traffic/exchanges/{quote(request, safe='')}"))
    still = f"; it is still in {', '.join(gone.still_in)}" if gone.still_in else ""
    _print(gone, as_json, f"deleted {gone.exchanges} exchanges and {gone.feedback} pieces of feedback{still}")


COMMANDS: Mapping[str, Callable[..., None]] = {
    "log": log, "off": off, "policy": policy, "show": show, "feedback": feedback, "trace": trace, "harvest": harvest,
    "preferences": preferences, "delete": delete,
}  # fmt: skip


def _policy() -> TrafficPolicy:
    return TrafficPolicy.model_validate_json(_call("GET", "/v1/traffic/policy"))


def _put_policy(new: TrafficPolicy, as_json: bool) -> None:
    _show_policy(TrafficPolicy.model_validate_json(_call("PUT", "/v1/traffic/policy", new)), as_json)


def _show_policy(found: TrafficPolicy, as_json: bool) -> None:
    if not found.rules:
        _print(found, as_json, "nothing is logged")
        return
    rules = (f"{r.share:.1%} of model {r.model or 'any'}, group {r.group or 'any'}" for r in found.rules)
    _print(
        found, as_json, "\n".join([*rules, f"kept for {found.retention_days} days; the first rule that fits decides"])
    )


def _filter(
    kind: type[ContractT],
    model: str | None,
    group: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    **more: object,
) -> ContractT:
    zoned = {name: f"{at.isoformat()}Z" for name, at in (("since", since), ("until", until)) if at is not None}
    return _valid(kind, model=model, group=group, limit=limit, **zoned, **more)


def _query(where: TrafficFilter) -> str:
    return urlencode(where.model_dump(mode="json", exclude_none=True, exclude_defaults=True) | {"limit": where.limit})


def _valid(kind: type[ContractT], **values: object) -> ContractT:
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        raise BadRequest("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())) from exc


def _call(method: str, path: str, body: BaseModel | None = None) -> bytes:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else body.model_dump_json().encode()
    return Client(CliSettings()).request(method, "inference", path, data, headers)


def _print(made: BaseModel, as_json: bool, told: str) -> None:
    if as_json:
        output.print_json(made.model_dump(mode="json"))
    else:
        output.console.print(told, highlight=False, markup=False, soft_wrap=True)
