"""What the commands print: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from textmill.contracts.jobs import JobView
from textmill_cli.doctor import Finding
from textmill_cli.local.up import ProcessState

PIPED_COLUMNS = 200
"""Ids are cut off in a narrow table, and what is piped on is read by a program or scrolled by a person."""


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPED_COLUMNS)


console = _console()
errors = _console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def addresses(states: Sequence[ProcessState]) -> Table:
    table = Table("", "what", "address", "process", "log", box=None, pad_edge=False)
    for state in states:
        mark = Text("●", "green" if state.ready else "red")
        table.add_row(mark, state.name, state.url if state.ready else state.detail, str(state.pid), state.log)
    return table


def findings(found: Sequence[Finding]) -> Table:
    table = Table("", "what", "found", "to mend it", box=None, pad_edge=False)
    for finding in found:
        table.add_row(
            Text("✓", "green") if finding.ok else Text("✗", "red"), finding.what, finding.detail, finding.mend
        )
    return table


def jobs(views: Sequence[JobView]) -> Table:
    table = Table("job", "kind", "state", "attempts", "now", box=None, pad_edge=False)
    for view in views:
        now = view.progress.stage if view.progress and not view.finished else ""
        if view.result is not None and view.result.failure is not None:
            now = view.result.failure.message[:80]
        table.add_row(view.job.job_id, view.job.kind, view.state, str(view.attempts), now)
    return table
