"""What a run finds out before it trains: options from evidence, a setup that fits, a probe, a sweep, a forecast.

The report ``forecast`` is written before the first step and completed after the last. A resumed run takes its learning
rate, its rank and its setup from the earlier attempt's report: they are part of what makes it the same run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from textmill.contracts.runs import TrainingSummary
from textmill.contracts.trainforecast import MeasuredStep, OptionEvidence, Setup, Sweep, TrainForecast
from textmill.errors import JobFailed
from textmill_trainer.batches import cut
from textmill_trainer.checkpoint import checkpoints
from textmill_trainer.evidence import Facts, resolve_options
from textmill_trainer.fit import Rows, available_memory, describe, find_setup, growth_bytes, ladder, refusal
from textmill_trainer.forecast import Extent, between, cost_of, seconds_by_stage, settle, tokens_per_s
from textmill_trainer.geometry import Geometry, read_geometry
from textmill_trainer.loop import plan_steps
from textmill_trainer.memory import Load, trained
from textmill_trainer.model import describe_device
from textmill_trainer.order import Plan
from textmill_trainer.prepare import dataset_digest
from textmill_trainer.probe import Probing, TooLarge, measure, measure_until_it_fits
from textmill_trainer.sweep import candidates, sweep, trial_steps

if TYPE_CHECKING:
    from textmill_trainer.stages import Run

_STEPS_LOOKED_AT = 256
_LEAST_FOR_TYPICAL = 16
"""In shorter runs more probed steps would cost too large a share."""
_REPEATED = 3
"""In young processes of a busy machine single warm steps were seen to take three times as long as the run's."""


@dataclass(frozen=True)
class Chosen:
    """What the run goes with. ``earlier`` is the report of the attempt that it resumes."""

    geometry: Geometry
    learning_rate: float
    rank: int
    rows: Rows
    asked: Setup
    setup: Setup
    evidence: Sequence[OptionEvidence] = ()
    advice: Sequence[str] = ()
    earlier: TrainForecast | None = None


def choose(run: "Run") -> Chosen:
    """Numbers for what the job leaves open, and a setup that fits by formula. Needs the examples, no model.

    Raises:
        JobFailed: the run fits in no setup that leaves its results alone.
    """
    job, geometry = run.job, read_geometry(run.base)
    lengths = [len(e.token_ids) for e in run.examples]
    plan = Plan(lengths, "", seed=job.seed, epochs=job.epochs, batch_size=job.batch_size,
                step_tokens=job.step_tokens, max_steps=job.max_steps)  # fmt: skip
    learnable = sum(e.supervised_tokens for e in run.examples)
    found = resolve_options(job, Facts(geometry, plan.total_steps, learnable))
    together = (len(lengths) if job.step_tokens else job.batch_size) * (2 if job.objective == "dpo" else 1)
    rows = Rows(max(lengths), together, max(e.supervised_tokens / len(e.token_ids) for e in run.examples))
    asked = Setup(
        max_padded_tokens=run.spec.max_padded_tokens,
        dequantized=job.method != "qlora" or 2 * geometry.linear_parameters <= run.spec.dequantized_budget_bytes,
    )
    earlier = _earlier(run)
    chosen = Chosen(
        geometry, found.learning_rate, found.rank, rows, asked, asked, found.evidence, found.advice, earlier
    )
    if earlier is not None:
        setup = earlier.setup.model_copy(update={"dequantized": asked.dequantized and earlier.setup.dequantized})
        return replace(chosen, learning_rate=earlier.learning_rate, rank=earlier.rank, setup=setup)
    setup = find_setup(geometry, lambda s: _load(run, chosen, s), asked, rows.longest, available_bytes(run.device))
    return replace(chosen, setup=setup)


def rehearse(run: "Run", chosen: Chosen) -> TrainForecast:
    """Probe the loaded model, sweep where asked to, and write the forecast. Sets ``run.settings`` to what is used.

    Raises:
        JobFailed: a step fits in no setup, or every learning rate of a sweep diverged.
        Interrupted: asked to stop while sweeping.
    """
    lengths = [run.objective.tokens(e) for e in run.learned]
    plan = plan_steps(lengths, dataset_digest(run.learned), run.settings)
    setup, measured = _probe(run, chosen, plan)
    run.settings = replace(run.settings, max_padded_tokens=setup.max_padded_tokens)
    found = chosen.earlier.sweep if chosen.earlier else None
    if run.job.learning_rate == "sweep" and found is None:
        found = _sweep(run, chosen, plan.total_steps)
        run.settings = replace(run.settings, learning_rate=found.chosen)
    forecast = _forecast(run, replace(chosen, setup=setup), plan, lengths, measured, found)
    run.folder.write(run.folder.report("forecast"), forecast)
    return forecast


def look_back(run: "Run", summary: TrainingSummary) -> TrainingSummary:
    """Complete the forecast's report with what became of it, and the summary with the options that were used."""
    run.folder.write(run.folder.report("forecast"), settle(run.forecast, summary))
    rank = None if run.job.method == "full" else run.lora.rank
    return summary.model_copy(update={"learning_rate": run.settings.learning_rate, "rank": rank})


def available_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def _earlier(run: "Run") -> TrainForecast | None:
    path = run.folder.report("forecast")
    if not path.exists() or not checkpoints(run.folder.checkpoints):
        return None
    return TrainForecast.model_validate_json(path.read_bytes())


def _load(run: "Run", chosen: Chosen, setup: Setup) -> Load:
    return chosen.rows.load(run.job, setup, chosen.rank, run.device.type == "cuda")


def _probe(run: "Run", chosen: Chosen, plan: Plan) -> tuple[Setup, list[MeasuredStep]]:
    """The longest batch of the first steps, after a short one that wakes the libraries; a middling one, repeated."""
    batches = [
        [run.learned[i] for i in plan.at(step).records] for step in range(min(plan.total_steps, _STEPS_LOOKED_AT))
    ]
    objective, setup = run.objective, chosen.setup

    def parts_of(batch: Sequence[Any], tokens: int) -> list[list[Any]]:
        return cut(batch, objective.tokens, tokens, packed=run.settings.packed)

    def tokens(batch: Sequence[Any]) -> int:
        return sum(objective.tokens(e) for e in batch)

    def formula_bytes(parts: Sequence[Sequence[Any]], tried: Setup) -> int:
        sizes = [_size(part, objective.tokens, run.settings.packed) for part in parts]
        longest = max(objective.tokens(e) for e in parts[sizes.index(max(sizes))])
        scored = round(max(sizes) * chosen.rows.scored_share)
        load = replace(_load(run, chosen, tried), padded_tokens=max(sizes), longest=longest, scored=scored)
        return growth_bytes(chosen.geometry, load)

    batches.sort(key=tokens)
    limit = None if run.device.type == "cuda" else available_bytes(run.device)
    probing = Probing(run.model, objective, run.device, parts_of, formula_bytes, limit)
    setups = [s for s in ladder(setup, chosen.rows.longest, qlora=False) if s.dequantized == setup.dequantized]
    if chosen.earlier:
        setups = [s for s in setups if s.max_padded_tokens == setup.max_padded_tokens]
    try:
        measure(probing, [min(run.learned, key=objective.tokens)], setup)
    except TooLarge:
        fitted = None
    else:
        fitted = measure_until_it_fits(probing, batches[-1], setups)
    if fitted is None:
        raise JobFailed(refusal(chosen.geometry, _load(run, chosen, setups[-1]), available_bytes(run.device) or 0))
    measured = [fitted[1]]
    if plan.total_steps >= _LEAST_FOR_TYPICAL:
        measured.append(measure(probing, batches[len(batches) // 2], fitted[0], again=_REPEATED))
    return fitted[0], measured


def _size(part: Sequence[Any], tokens: Any, packed: bool) -> int:
    lengths = [tokens(e) for e in part]
    return sum(lengths) if packed else len(lengths) * max(lengths)


def _sweep(run: "Run", chosen: Chosen, total_steps: int) -> Sweep:
    evaluated = run.eval_pairs if run.job.objective == "dpo" else run.eval_examples
    return sweep(
        run.model,
        run.objective,
        run.learned,
        evaluated,
        run.settings,
        run.folder.root / "sweep",
        candidates(chosen.learning_rate),
        trial_steps(total_steps),
        stopping=run.stopping,
    )


def _forecast(
    run: "Run",
    chosen: Chosen,
    plan: Plan,
    lengths: Sequence[int],
    measured: Sequence[MeasuredStep],
    swept: Sweep | None,
) -> TrainForecast:
    load = _load(run, chosen, chosen.setup)
    count = trained(chosen.geometry, load)
    tokens = sum(lengths[i] for step in range(plan.total_steps) for i in plan.at(step).records)
    extent = Extent(
        steps=plan.total_steps,
        tokens=tokens,
        evaluations=run.settings.evaluations,
        eval_tokens=sum(len(e.token_ids) for e in run.eval_examples),
        checkpoints=run.settings.checkpoints,
    )
    stages = seconds_by_stage(
        extent, tokens_per_s(measured), chosen.geometry, run.job.method, count, swept.seconds if swept else 0.0
    )
    seconds = between(sum(stages.values()), measured)
    return TrainForecast(
        base_model=run.spec.base_model,
        parameters=chosen.geometry.parameters,
        trained_parameters=count,
        steps=plan.total_steps,
        tokens=between(tokens).model_copy(update={"low": tokens, "high": tokens}),
        seconds=seconds,
        seconds_by_stage=stages,
        cost=cost_of(seconds, run.spec.device_hour_price),
        memory=describe(chosen.geometry, load, available_bytes(run.device)),
        asked=chosen.asked,
        setup=chosen.setup,
        probe=measured,
        learning_rate=run.settings.learning_rate,
        rank=chosen.rank,
        evidence=chosen.earlier.evidence if chosen.earlier else chosen.evidence,
        sweep=swept,
        advice=chosen.advice,
        notes=["evaluations of recall and forgetting, and loading the model, are not in the time"],
        device=describe_device(run.device),
    )
