"""Follows the server-sent events of a load test, and comes back for the rest where the connection breaks."""

import time
from collections.abc import Iterator

from textmill.contracts.loadoptions import LoadtestEvent
from textmill.errors import DependencyDown, NotFound, Transient
from textmill_cli.client import Client

_PATIENCE_S = 180.0


def follow_job(client: Client, path: str) -> Iterator[LoadtestEvent]:
    """Each event once, until the test has ended.

    Raises:
        Transient: the service was out of reach for three minutes.
    """
    last, deadline = "", time.monotonic() + _PATIENCE_S
    while True:
        try:
            for event_id, kind, data in _frames(client.stream("inference", f"{path}/events", last)):
                deadline = time.monotonic() + _PATIENCE_S
                if kind == "end":
                    return
                last = event_id
                yield LoadtestEvent.model_validate_json(data)
        except (DependencyDown, NotFound) as exc:
            if time.monotonic() > deadline:
                raise Transient(f"{exc}; the load test goes on without us: GET {path} tells how far it is") from exc
        time.sleep(0.5)


def _frames(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Id, event and data of each frame; comments are skipped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields.get("data") is not None:
            yield fields.get("id", ""), fields.get("event", ""), fields["data"]
            fields = {}
