"""'textmill compare': put the same prompts to several models, vote on the answers, see what the votes show."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from textmill.contracts.jobs import CompareJob
from textmill.contracts.pairwise import ComparisonManifest, ComparisonResults, Interval, Standings
from textmill.errors import BadRequest
from textmill_cli import output
from textmill_cli.client import Client
from textmill_cli.follow import follow
from textmill_cli.settings import CliSettings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ComparisonArgument = Annotated[str, typer.Argument(help="As 'textmill compare list' shows it.")]


def run(
    models: Annotated[list[str], typer.Argument(help="Two or more served models.")],
    dataset: Annotated[str, typer.Option(help="Ask the held-out questions of this dataset.")] = "",
    prompts: Annotated[Path | None, typer.Option(help="Ask what is in this file: one prompt, or JSON, a line.")] = None,
    traffic: Annotated[str, typer.Option(help="Ask what was logged of this model; '*' for all.")] = "",
    max_prompts: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, max=32_768)] = 256,
    judge: Annotated[str, typer.Option(help="A model that judges each pair, both ways.")] = "",
    judge_url: Annotated[str, typer.Option(help="Where the judge is; our own gateway by default.")] = "",
    judge_key_env: Annotated[str, typer.Option(help="The service's variable that has the judge's key.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask all models the same, and say where to vote."""
    judging = {"model": judge, "url": judge_url or None, "key_from": {"env": judge_key_env} if judge_key_env else None}
    options: dict[str, Any] = {
        "models": models, "max_prompts": max_prompts, "max_tokens": max_tokens,
        "dataset_id": dataset or None, "prompts": _lines(prompts) if prompts else (),
        "traffic": {"model": None if traffic == "*" else traffic} if traffic else None,
        "judge": judging if judge else None,
    }  # fmt: skip
    try:
        job = CompareJob.model_validate(options)
    except ValidationError as exc:
        raise BadRequest("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())) from exc
    client = Client(CliSettings())
    view = client.submit(job)
    console = output.errors if as_json else output.console
    follow(client, view.job.job_id, console)
    if as_json:
        output.print_json(_results(job.comparison_id).model_dump(mode="json"))
        return
    _show_results(_results(job.comparison_id))
    pages(job.comparison_id)


def list_all(as_json: AsJson = False) -> None:
    """Finished comparisons, oldest first."""
    client, after, found = Client(CliSettings()), "", list[ComparisonManifest]()
    while True:
        page: Any = client.get("inference", f"/v1/comparisons?limit=500&after={after}")
        found += [ComparisonManifest.model_validate(item) for item in page["items"]]
        after = page["next_after"]
        if after is None:
            break
    if as_json:
        output.print_json([manifest.model_dump(mode="json") for manifest in found])
        return
    table = Table("comparison", "models", "prompts", "pairs", "judge", "made", box=None)
    for one in found:
        judge = one.judge.model if one.judge else "none"
        made = f"{one.created_at:%Y-%m-%d %H:%M}"
        table.add_row(one.comparison_id, ", ".join(one.models), str(one.prompts), str(one.pairs), judge, made)
    output.console.print(table)


def results(comparison: ComparisonArgument, as_json: AsJson = False) -> None:
    """What the votes show so far, with intervals."""
    found = _results(comparison)
    if as_json:
        output.print_json(found.model_dump(mode="json"))
    else:
        _show_results(found)


def pages(comparison: ComparisonArgument, as_json: AsJson = False) -> None:
    """Where to vote in a browser, and where to see the results."""
    base = CliSettings().urls()["inference"]
    found = {name: f"{base}/compare/{name}?comparison={comparison}" for name in ("vote", "results")}
    if as_json:
        output.print_json(found)
        return
    for name, url in found.items():
        output.console.print(f"{name}: {url}", highlight=False, soft_wrap=True)


COMMANDS: Mapping[str, Callable[..., None]] = {"run": run, "list": list_all, "results": results, "pages": pages}


def _results(comparison_id: str) -> ComparisonResults:
    data = Client(CliSettings()).request("GET", "inference", f"/v1/comparisons/{comparison_id}/results")
    return ComparisonResults.model_validate_json(data)


def _lines(path: Path) -> list[Any]:
    """A line that is a JSON list is a conversation of messages; any other is a prompt as it stands."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return [json.loads(line) if line.startswith("[{") else line for line in lines if line]
    except (OSError, ValueError) as exc:
        raise BadRequest(f"{path} can't be read: {exc}; it needs one prompt a line, in UTF-8") from exc


def _show_results(found: ComparisonResults) -> None:
    for standings in found.standings:
        who = "the judge" if standings.source == "judge" else f"{standings.voters} people"
        output.console.print(f"{standings.votes} votes by {who} on {standings.prompts} prompts", highlight=False)
        output.console.print(_ratings(standings))
        output.console.print(_pairs(standings))
    bias = found.position_bias
    if bias is not None and bias.consistency is not None and bias.consistency_interval is not None:
        output.console.print(
            f"the judge said the same with the sides changed in {bias.consistency:.0%} of {bias.pairs} pairs "
            f"({_shares(bias.consistency_interval)}); else always the first {bias.always_first}, always the second "
            f"{bias.always_second}, once a tie {bias.half}; unreadable {bias.unreadable}",
            highlight=False,
        )
    for note in found.notes:
        output.console.print(note, highlight=False)


def _ratings(standings: Standings) -> Table:
    table = Table("model", "rating", "95 %", box=None)
    for one in standings.ratings:
        interval = f"{one.rating_interval.low:.0f} to {one.rating_interval.high:.0f}"
        table.add_row(one.model, f"{one.rating:.0f}", interval)
    return table


def _pairs(standings: Standings) -> Table:
    table = Table("pair", "won/lost/tied/both bad", "the first wins", "95 %", "", box=None)
    for one in standings.pairs:
        counts = f"{one.wins}/{one.losses}/{one.ties}/{one.both_bad}"
        shown = f"{one.shown} is better" if one.shown else "no difference shown"
        pair = f"{one.first} and {one.second}"
        table.add_row(pair, counts, f"{one.win_rate:.0%}", _shares(one.win_rate_interval), shown)
    return table


def _shares(interval: Interval) -> str:
    return f"{interval.low:.0%} to {interval.high:.0%}"
