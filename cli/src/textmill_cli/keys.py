"""'textmill keys': make, list, look at and revoke the API keys of the gateway."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from textmill.contracts.keys import CreatedKey, KeyLimits, KeyScope, KeyView, NewKey, QuotaUse
from textmill.errors import BadRequest
from textmill_cli import output
from textmill_cli.client import Client
from textmill_cli.settings import CliSettings

_SPANS = {"h": "hours", "d": "days", "w": "weeks"}
_USES = TypeAdapter(list[QuotaUse])
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
KeyId = Annotated[str, typer.Argument(help="As 'textmill keys list' shows it.")]
Some = Annotated[int | None, typer.Option(min=1)]


def create(
    name: Annotated[str, typer.Argument(help="Whose it is, for you to know it by.")],
    group: Annotated[str, typer.Option(help="The label that metrics carry: a team or an application.")] = "default",
    model: Annotated[list[str] | None, typer.Option(help="May be used; NAME* for all that begin so.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Opens the control API too.")] = False,
    expires: Annotated[str, typer.Option(help="30d, 12h, 4w, or a date such as 2030-01-31.")] = "",
    weight: Annotated[float, typer.Option(help="Its share of a busy model; 2 gets twice the tokens of 1.")] = 1.0,
    requests_per_minute: Some = None,
    tokens_per_minute: Some = None,
    tokens_per_day: Some = None,
    concurrent: Some = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once."""
    scopes: frozenset[KeyScope] = frozenset({"inference", "admin"}) if admin else frozenset({"inference"})
    try:
        limits = KeyLimits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            tokens_per_day=tokens_per_day,
            concurrent=concurrent,
        )
        wanted = NewKey(
            name=name, group=group, scopes=scopes, models=tuple(model or ("*",)), limits=limits, weight=weight,
            expires_at=expiry(expires, datetime.now(UTC)),
        )  # fmt: skip
    except ValidationError as exc:
        raise BadRequest("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())) from exc
    made = CreatedKey.model_validate_json(_call("POST", "/v1/keys", wanted.to_json()))
    if as_json:
        output.print_json(made.model_dump(mode="json"))
        return
    print(made.key)
    output.errors.print(f"{made.view.key_id}: keep the key now, it can't be shown again", highlight=False)


def list_keys(
    revoked: Annotated[bool, typer.Option("--revoked", help="Those that were revoked, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """All keys, oldest first, without their secrets."""
    views = list(_all(revoked))
    if as_json:
        output.print_json([view.model_dump(mode="json") for view in views])
    else:
        output.console.print(_table(views))


def show(key_id: KeyId, as_json: AsJson = False) -> None:
    """One key, and how much of its quotas is used now."""
    view = KeyView.model_validate_json(_call("GET", f"/v1/keys/{key_id}"))
    uses = _USES.validate_json(_call("GET", f"/v1/keys/{key_id}/usage"))
    if as_json:
        output.print_json(view.model_dump(mode="json") | {"usage": [use.model_dump() for use in uses]})
        return
    output.console.print(_table([view]))
    for use in uses:
        output.console.print(f"{use.quota.replace('_', ' ')}: {use.used} of {use.allowed} used", highlight=False)


def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """End a key. Gateways refuse it within seconds."""
    view = KeyView.model_validate_json(_call("DELETE", f"/v1/keys/{key_id}"))
    if as_json:
        output.print_json(view.model_dump(mode="json"))
    else:
        output.console.print(f"revoked {view.key_id} ({view.name})", highlight=False)


COMMANDS: Mapping[str, Callable[..., None]] = {"create": create, "list": list_keys, "show": show, "revoke": revoke}


def expiry(text: str, now: datetime) -> datetime | None:
    """A span from now, or a date or time; UTC where it names no zone. Raises ``BadRequest``."""
    span = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if not text:
        return None
    if span is not None:
        return now + timedelta(**{_SPANS[span[2]]: int(span[1])})
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise BadRequest(f"--expires {text!r} is no time: write 30d, 12h, 4w, or a date such as 2030-01-31") from exc
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _call(method: str, path: str, body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    return Client(CliSettings()).request(method, "inference", path, body, headers)


def _all(revoked: bool) -> Iterator[KeyView]:
    client, after = Client(CliSettings()), ""
    while True:
        page: Any = client.get("inference", f"/v1/keys?limit=100&revoked={str(revoked).lower()}{after}")
        yield from (KeyView.model_validate(item) for item in page["items"])
        for trouble in page["unreadable"]:
            output.errors.print(f"can't be read: {trouble}", markup=False, highlight=False)
        if page["next_after"] is None:
            return
        after = f"&after={page['next_after']}"


def _table(views: Sequence[KeyView]) -> Table:
    table = Table("key", "begins", "name", "group", "scopes", "models", "limits", "ends", "last used", box=None)
    for view in views:
        limits = view.limits.model_dump(exclude_none=True)
        table.add_row(
            view.key_id, view.hint, view.name, view.group, ", ".join(sorted(view.scopes)), ", ".join(view.models),
            ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in limits.items()) or "none",
            _end(view), view.last_used_at.strftime("%Y-%m-%d %H:%M") if view.last_used_at is not None else "never",
        )  # fmt: skip
    return table


def _end(view: KeyView) -> str:
    if view.revoked_at is not None:
        return f"revoked {view.revoked_at:%Y-%m-%d}"
    return f"{view.expires_at:%Y-%m-%d %H:%M}" if view.expires_at is not None else "never"
