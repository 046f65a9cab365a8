"""Reads a run's reports back from the store: what was masked, which records stand out, how the gates went. No torch.

Each is a JSON object of its own contract, by name. Knows none of them.
"""

from textmill.errors import NotFound
from textmill.store import ObjectStore


class StoredReports:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def names(self, run_id: str) -> list[str]:
        """Reports that any attempt of the run has written. Raises ``NotFound`` for a run without an object."""
        return sorted(self._keys(run_id))

    def report(self, run_id: str, name: str) -> bytes:
        """JSON of the newest attempt that has it: a resumed one writes only what it made anew. Raises ``NotFound``."""
        keys = self._keys(run_id)
        if name not in keys:
            have = ", ".join(sorted(keys)) or "none yet"
            raise NotFound(f"run {run_id!r} has no report {name!r}; it has: {have}")
        return self._store.get(keys[name])

    def _keys(self, run_id: str) -> dict[str, str]:
        """The newest key of each report by its name."""
        newest: dict[str, tuple[int, str]] = {}
        objects = 0
        for info in self._store.list(f"runs/{run_id}/attempt-"):
            objects += 1
            _, _, attempt, *rest = info.key.split("/")
            if len(rest) == 2 and rest[0] == "reports" and rest[1].endswith(".json"):
                found = int(attempt.removeprefix("attempt-")), info.key
                name = rest[1].removesuffix(".json")
                newest[name] = max(found, newest.get(name, found))
        if not objects:
            raise NotFound(f"no run {run_id!r}, or it has written nothing yet: its job tells how far it is")
        return {name: key for name, (_, key) in newest.items()}
