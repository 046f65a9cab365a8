"""Fetches a published model into a folder and ends: what a plain vLLM pod does before it starts.

    python -m textmill_inference.rollout.fetch_model mdl_... /model

The files are checked against the digests in the model's manifest. ``/model/current`` leads to them.
"""

import argparse
import sys
from pathlib import Path

from textmill.errors import TextmillError
from textmill.settings import StoreSettings
from textmill.store import ObjectStore
from textmill_inference.rollout.model_cache import fetch, read_manifest

CURRENT = "current"


def fetch_model(store: ObjectStore, model_id: str, folder: Path) -> Path:
    """The model's folder. A container that is restarted finds it there. Raises what ``model_cache.fetch`` raises."""
    found = fetch(store, read_manifest(store, model_id), folder).path
    link, partial = folder / CURRENT, folder / f".{CURRENT}"
    partial.unlink(missing_ok=True)
    partial.symlink_to(found.name)
    partial.rename(link)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_id")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        found = fetch_model(StoreSettings().open(), arguments.model_id, arguments.folder)
    except TextmillError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    print(f"{arguments.model_id} is in {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
