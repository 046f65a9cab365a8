"""``POST /v1/runs/forecast``: what a run would take, by formula, before anybody asks for it.

Reads the dataset and the headers of the base model, and loads no torch: so it answers in about a second, and knows
nothing that only a step on the device can tell. What it had to guess is in ``notes``.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from fastapi import APIRouter
from tokenizers import Tokenizer

from textmill.contracts.datasets import DatasetManifest, Record
from textmill.contracts.preflight import Interval
from textmill.contracts.trainforecast import ForecastRequest, Setup, TrainForecast
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore
from textmill_trainer.evidence import Facts, resolve_options
from textmill_trainer.fit import Rows, describe
from textmill_trainer.forecast import Extent, between, cost_of, seconds_by_stage
from textmill_trainer.geometry import Geometry, read_geometry
from textmill_trainer.memory import trained
from textmill_trainer.order import Plan
from textmill_trainer.settings import TrainerSettings
from textmill_trainer.stored import StoredModels

_TEMPLATE_TOKENS = 5
"""What a chat template puts around a message: role, turn markers, line ends."""
_BYTES_A_TOKEN = 3.5
"""Of UTF-8 where the tokenizer isn't at hand: about 4 in English, 2 to 3 in Chinese."""


@dataclass(frozen=True)
class Counted:
    """Tokens of each record, and those of its answers. ``off`` is the share by which they may be wrong."""

    lengths: Sequence[int]
    answered: Sequence[int]
    off: float


def forecast_router(store: ObjectStore, settings: TrainerSettings) -> APIRouter:
    router = APIRouter(tags=["runs"])

    @router.post("/v1/runs/forecast", summary="What a run would take: memory, steps, and time where it can be known")
    def forecast(request: ForecastRequest) -> TrainForecast:
        return forecast_run(store, settings, request)

    return router


def forecast_run(store: ObjectStore, settings: TrainerSettings, request: ForecastRequest) -> TrainForecast:
    """By formula alone.

    Raises:
        NotFound: no such dataset.
        BadRequest: the base model is not on this machine, or the objective doesn't train on a dataset.
    """
    if request.objective != "supervised":
        raise BadRequest(
            f"objective {request.objective!r} doesn't train on a dataset: only supervised runs are forecast"
        )
    base = request.base_model or settings.base_model
    if not Path(base).is_dir():
        raise BadRequest(
            f"base model {base!r} is not a folder on this machine: its run will fetch it and then forecast"
        )
    geometry = read_geometry(Path(base))
    manifest = DatasetManifest.model_validate_json(store.get(f"datasets/{request.dataset_id}/manifest.json"))
    train, evaluated = (_count(store, manifest, split, Path(base)) for split in ("train", "eval"))
    if not train.lengths:
        raise BadRequest(f"dataset {request.dataset_id} has no records in its train split")
    return _forecast(store, settings, request, base, geometry, train, evaluated)


def _forecast(
    store: ObjectStore,
    settings: TrainerSettings,
    request: ForecastRequest,
    base: str,
    geometry: Geometry,
    train: Counted,
    evaluated: Counted,
) -> TrainForecast:
    plan = Plan(
        train.lengths, "", seed=request.seed, epochs=request.epochs, batch_size=request.batch_size,
        step_tokens=request.step_tokens, max_steps=request.max_steps,
    )  # fmt: skip
    tokens = sum(train.lengths[i] for step in range(plan.total_steps) for i in plan.at(step).records)
    found = resolve_options(request, Facts(geometry, plan.total_steps, sum(train.answered)))
    fits_budget = 2 * geometry.linear_parameters <= settings.dequantized_budget_mb << 20
    setup = Setup(max_padded_tokens=settings.max_padded_tokens, dequantized=request.method != "qlora" or fits_budget)
    together = len(train.lengths) if request.step_tokens else request.batch_size
    load = Rows(max(train.lengths), together).load(request, setup, found.rank, cuda=False)
    count = trained(geometry, load)
    rate, how = _rate(store, request, base)
    extent = Extent(plan.total_steps, tokens, request.evaluations, sum(evaluated.lengths), request.checkpoints)
    stages = seconds_by_stage(extent, rate, geometry, request.method, count) if rate else {}
    seconds = between(sum(stages.values())) if rate else None
    return TrainForecast(
        base_model=base,
        parameters=geometry.parameters,
        trained_parameters=count,
        steps=plan.total_steps,
        tokens=Interval(expected=tokens, low=tokens * (1 - train.off), high=tokens * (1 + train.off)),
        seconds=seconds,
        seconds_by_stage=stages,
        cost=cost_of(seconds, settings.device_hour_price),
        memory=describe(geometry, load, None),
        asked=setup,
        setup=setup,
        learning_rate=found.learning_rate,
        rank=found.rank,
        evidence=found.evidence,
        advice=found.advice,
        notes=[
            f"tokens are estimated to within {train.off:.0%}",
            how,
            "memory is for attention on a CPU; what is free on the device that will train isn't known here",
        ],
    )


def _rate(store: ObjectStore, request: ForecastRequest, base: str) -> tuple[float | None, str]:
    """Tokens a second: as given, or of the newest model of this base that was trained here."""
    if request.tokens_per_s:
        return request.tokens_per_s, f"the time is for {request.tokens_per_s:g} tokens a second, as given"
    models = StoredModels(store)
    for model_id in reversed(list(models.model_ids())):
        try:
            manifest = models.manifest(model_id)
        except NotFound:
            continue
        if manifest.lineage.base_model == base:
            training = manifest.training
            rate = f"{training.tokens_per_s:.0f} tokens a second on {training.device}"
            return training.tokens_per_s, f"the time is that of {manifest.model_id}: {rate}"
    return None, "no model of this base was trained here, so the time isn't known: give tokens_per_s, or start the run"


def _count(store: ObjectStore, manifest: DatasetManifest, split: str, base: Path) -> Counted:
    keys = {name: key for name, key in manifest.records_keys.items() if name == split and manifest.records.get(name)}
    if not keys:
        return Counted((), (), 0.0)
    rows = pq.read_table(io.BytesIO(store.get(keys[next(iter(keys))]))).to_pylist()
    records = [Record.model_validate(row) for row in rows]
    path = base / "tokenizer.json"
    texts = [[(m.role, m.content) for m in record.messages] for record in records]
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
        flat = tokenizer.encode_batch([text for turns in texts for _, text in turns], add_special_tokens=False)
        counts = iter(len(encoding.ids) for encoding in flat)
        off = 0.1
    else:
        counts = iter(round(len(text.encode()) / _BYTES_A_TOKEN) for turns in texts for _, text in turns)
        off = 0.4
    counted = [[(role, next(counts) + _TEMPLATE_TOKENS) for role, _ in turns] for turns in texts]
    return Counted(
        lengths=[sum(n for _, n in turns) for turns in counted],
        answered=[sum(n for role, n in turns if role == "assistant") for turns in counted],
        off=off,
    )
