"""Tries a recipe on a few passages, and shows what the whole will take, what it will yield, and what to do next."""

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from textmill.contracts.jobs import JobView
from textmill.contracts.preflight import Interval, PreflightManifest, ValueCheck
from textmill.contracts.synthesis import Budget
from textmill.errors import DependencyDown
from textmill_cli.client import Client
from textmill_cli.follow import follow
from textmill_cli.local import up as local
from textmill_cli.plan import preflight_of
from textmill_cli.recipe import Recipe, load
from textmill_cli.settings import CliSettings

_READY_S = 300
_MUCH_KNOWN = 0.1
_LOW_YIELD = 0.5


def run(settings: CliSettings, path: Path, passages: int, console: Console) -> PreflightManifest:
    """Start the installation if nothing is up here, upload the sources, and wait for the pilot. It is left up.

    Raises:
        BadRequest: the recipe has a mistake, or makes no records.
        JobFailed: a job failed.
        DependencyDown: a service can't be reached.
    """
    recipe, client = load(path), Client(settings)
    preflight_of(recipe, [], passages)  # what is wrong with the recipe is told before anything starts
    _ensure_up(settings, client, console)
    documents = [client.upload(file, file.relative_to(path.parent).as_posix()) for file in recipe.files()]
    view = client.submit(preflight_of(recipe, [document.document_id for document in documents], passages))
    return _manifest(follow(client, view.job.job_id, console).views[-1])


def _ensure_up(settings: CliSettings, client: Client, console: Console) -> None:
    """Start everything, unless a synth service answers, or its address was given."""
    try:
        client.request("GET", "synth", "/healthz")
    except DependencyDown:
        if settings.synth_url:
            raise
        local.start_detached(settings)
        with console.status("starting object store, broker, services and engine (about a minute)"):
            local.wait_ready(settings, _READY_S, lambda found: None)
        console.print("everything is up, and stays up; 'textmill down' stops it")


def _manifest(view: JobView) -> PreflightManifest:
    assert view.result is not None
    assert view.result.output is not None
    return PreflightManifest.model_validate(view.result.output.manifest)


def show(found: PreflightManifest, recipe: Recipe, path: Path, console: Console) -> None:
    """Forecast, yield, value check, next steps."""
    budget = recipe.synthesis.budget if recipe.synthesis is not None else Budget()
    console.print(
        f"\n{found.passages} of {found.corpus_passages} passages tried, {found.calls} calls made and "
        f"{found.calls_reused} found in the ledger"
    )
    console.print(_forecast(found))
    console.print(_yield(found))
    if found.value is not None:
        console.print(_value(found.value))
    for note in found.notes:
        console.print(f"  {note}", style="dim", highlight=False)
    console.print("\nnext:", style="bold")
    for step in next_steps(found, budget, path):
        console.print(f"  - {step}", highlight=False)


def _forecast(found: PreflightManifest) -> Table:
    table = Table("the whole corpus", "expected", "from", "to", box=None, pad_edge=False)
    forecast = found.forecast
    rows: list[tuple[str, Interval | None, Callable[[float], str]]] = [
        ("calls", forecast.calls, _count),
        ("tokens in", forecast.prompt_tokens, _count),
        ("tokens out", forecast.completion_tokens, _count),
        ("cost", forecast.cost if forecast.cost.expected else None, lambda value: f"{value:.4g}"),
        ("accepted answers", forecast.accepted, _count),
        (f"time, {forecast.concurrency} calls at once", forecast.seconds, _duration),
    ]
    for name, interval, shown in rows:
        if interval is not None:
            ends = [shown(end) if end is not None else "?" for end in (interval.low, interval.high)]
            table.add_row(name, shown(interval.expected), *ends)
    return table


def _yield(found: PreflightManifest) -> Table:
    table = Table("strategy", "asked for", "accepted", "rejected", "dead-lettered", "why", box=None, pad_edge=False)
    for strategy, counts in found.counts_by_strategy.items():
        why = ", ".join(f"{reason} {n}" for reason, n in counts.rejected_by_reason.items())
        figures = (counts.requested, counts.accepted, counts.rejected, counts.dead_lettered)
        table.add_row(strategy, *map(str, figures), why)
    return table


def _value(value: ValueCheck) -> Table:
    table = Table(f"{value.base_model} was asked", "questions", "share", box=None, pad_edge=False)
    for name, count in (
        ("right without the passage: known already", value.known),
        ("right only with the passage: to be learnt", value.learnable),
        ("wrong both times", value.neither),
        ("no answer", value.unanswered),
    ):
        table.add_row(name, str(count), f"{count / value.asked:.0%}" if value.asked else "-")
    return table


def next_steps(found: PreflightManifest, budget: Budget, path: Path) -> Iterator[str]:
    """What follows from the figures, the most pressing first."""
    if found.budget_spent is not None and found.budget_spent.ended_by is not None:
        yield f"{found.budget_spent.ended_by} of 'budget' ended the pilot itself: raise it, and run the preflight again"
    for name, interval, cap in (
        ("max_calls", found.forecast.calls, budget.max_calls),
        ("max_tokens", _tokens(found), budget.max_tokens),
        ("max_cost", found.forecast.cost, budget.max_cost),
    ):
        if cap is not None and (interval.high or interval.expected) > cap:
            yield f"{name} = {cap:g} may not be enough: up to {interval.high or interval.expected:.4g} may be needed"
    counts = found.counts
    if counts.requested and counts.accepted < _LOW_YIELD * counts.requested:
        reasons = {**counts.rejected_by_reason, "no answer (dead-lettered)": counts.dead_lettered}
        most = max(reasons, key=lambda reason: reasons[reason])
        yield f"only {counts.accepted} of {counts.requested} answers were accepted, most often for: {most}"
    if found.value is not None and 0 < found.value.known >= _MUCH_KNOWN * found.value.asked:
        yield f"to leave out what the model knows, add under 'synthesis':  leave_out_known: {found.preflight_id}"
    yield f"textmill run {path}   (what this preflight has asked is in the ledger and not paid for again)"


def _tokens(found: PreflightManifest) -> Interval:
    """An upper end that is safe: both directions at their highest."""
    sides = (found.forecast.prompt_tokens, found.forecast.completion_tokens)
    highs = [side.high for side in sides if side.high is not None]
    high = sum(highs) if len(highs) == len(sides) else None
    return Interval(expected=sum(side.expected for side in sides), high=high)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
