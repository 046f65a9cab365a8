"""What the store remembers of the served names.

``deployments/<name>.json`` says what a name answers with; ``deployments/history/<id>.json``, which the worker writes,
keeps each deployment as it was when its job ended.
"""

from textmill.contracts.serving import Deployment
from textmill.errors import NotFound
from textmill.store import ObjectStore

_PREFIX = "deployments/"
_HISTORY = "deployments/history/"


def deployment_key(name: str) -> str:
    return f"{_PREFIX}{name}.json"


def history_key(deployment_id: str) -> str:
    return f"{_HISTORY}{deployment_id}.json"


class Records:
    """All raise ``DependencyDown`` when the store can't be reached."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def all(self) -> list[Deployment]:
        return [
            Deployment.model_validate_json(self._store.get(item.key))
            for item in self._store.list(_PREFIX)
            if not item.key.startswith(_HISTORY)
        ]

    def find(self, name: str) -> Deployment | None:
        try:
            return Deployment.model_validate_json(self._store.get(deployment_key(name)))
        except NotFound:
            return None

    def get(self, name: str) -> Deployment:
        """Raises ``NotFound``."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"no deployment {name!r}; GET /v1/deployments lists them")
        return found

    def save(self, state: Deployment) -> None:
        self._store.put(deployment_key(state.name), state.to_json())

    def forget(self, name: str) -> None:
        self._store.delete(deployment_key(name))
