"""Reads runs and models back from the store. No torch."""

from collections.abc import Iterator

from textmill.contracts.base import Contract
from textmill.contracts.runs import EvalMetrics, ModelManifest, StepMetrics
from textmill.errors import NotFound
from textmill.store import ObjectStore
from textmill_trainer.metrics import parse_metrics

_METRICS = "/metrics.jsonl"


class RunView(Contract):
    """A run by what it has written so far."""

    run_id: str
    attempt: int
    metrics_key: str
    last_step: StepMetrics | None
    last_eval: EvalMetrics | None


class StoredRuns:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def run_ids(self, after: str = "") -> Iterator[str]:
        """Runs with metrics, oldest first, from the first past ``after``."""
        last = ""
        for info in self._store.list("runs/", f"runs/{after}/~" if after else ""):
            run_id = info.key.split("/")[1]
            if info.key.endswith(_METRICS) and run_id != last:
                last = run_id
                yield run_id

    def run(self, run_id: str) -> RunView:
        """Raises ``NotFound`` for a run that has no metrics yet."""
        attempt, key, _ = latest_metrics(self._store, run_id)
        metrics = list(parse_metrics(self._store.get(key)))
        steps = [m for m in metrics if isinstance(m, StepMetrics)]
        evals = [m for m in metrics if isinstance(m, EvalMetrics)]
        return RunView(
            run_id=run_id,
            attempt=attempt,
            metrics_key=key,
            last_step=steps[-1] if steps else None,
            last_eval=evals[-1] if evals else None,
        )

    def metrics(self, run_id: str) -> bytes:
        """JSON lines of the newest attempt: an attempt's metrics hold those it resumed from. Raises ``NotFound``."""
        return self._store.get(latest_metrics(self._store, run_id)[1])


def latest_metrics(store: ObjectStore, run_id: str) -> tuple[int, str, int]:
    """The newest attempt that has metrics: its number, their key and size in bytes. Raises ``NotFound``."""
    found = [i for i in store.list(f"runs/{run_id}/attempt-") if i.key.endswith(_METRICS)]
    if not found:
        raise NotFound(f"no run {run_id!r}, or it has not trained a step yet: its job tells how far it is")
    return max((int(i.key.split("/")[2].removeprefix("attempt-")), i.key, i.size_bytes) for i in found)


class StoredModels:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def model_ids(self, after: str = "") -> Iterator[str]:
        """Published models, oldest first, from the first past ``after``."""
        for info in self._store.list("models/", f"models/{after}/~" if after else ""):
            model_id, _, name = info.key.removeprefix("models/").partition("/")
            if name == "manifest.json":
                yield model_id

    def manifest(self, model_id: str) -> ModelManifest:
        try:
            return ModelManifest.model_validate_json(self._store.get(f"models/{model_id}/manifest.json"))
        except NotFound as exc:
            raise NotFound(f"no model {model_id!r}, or its job isn't done yet") from exc
