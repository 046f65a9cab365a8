"""``textmill backup`` and ``textmill restore``: which store they mean, and what they print."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from textmill.settings import StoreSettings
from textmill.store import ObjectStore, S3Store
from textmill_cli import backup
from textmill_cli.local import servers
from textmill_cli.settings import CliSettings

Folder = Annotated[Path, typer.Argument(help="Where backups lie; a later one adds what is new.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def take_backup(folder: Folder, as_json: AsJson = False) -> None:
    """Copy the whole store into a folder, while everything runs."""
    made = backup.back_up(the_store(), folder, _tell)
    if as_json:
        print(json.dumps(asdict(made)))
    else:
        print(
            f"{made.index}: {made.objects} objects, {made.size_bytes / 1e6:.1f} MB, {made.new_bytes / 1e6:.1f} MB new"
        )


def restore_backup(
    folder: Folder,
    index: Annotated[str | None, typer.Option("--backup", help="Which one; the newest by default.")] = None,
    check_only: Annotated[bool, typer.Option("--check", help="Only read it and compare digests.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup into an empty store. Stop the services first."""
    count = backup.verify(folder, index) if check_only else backup.restore(the_store(), folder, index, _tell)
    if as_json:
        print(json.dumps({"objects": count, "checked_only": check_only}))
    else:
        print(f"{count} objects {'are whole' if check_only else 'restored'}")


def the_store() -> ObjectStore:
    """As TEXTMILL_STORE_* say; if they say nothing, the one of ``textmill up``. Makes the bucket if it isn't there."""
    store = _local() if not any(name.startswith("TEXTMILL_STORE_") for name in os.environ) else None
    store = store or StoreSettings().open()
    store.ensure_bucket()
    return store


def _local() -> S3Store | None:
    try:
        state = json.loads(CliSettings().state_file.read_text())
        url = state["processes"]["object-store"]["url"]
    except (OSError, ValueError, KeyError):
        return None
    return S3Store(url, servers.ACCESS_KEY, servers.SECRET_KEY, StoreSettings().bucket)


def _tell(line: str) -> None:
    typer.echo(line, err=True)
