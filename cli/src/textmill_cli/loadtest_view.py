"""A load test on the screen: a line for each stage, the running second below, and the verdict at the end."""

from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textmill.contracts.loadoptions import LoadtestEvent, StageStarted
from textmill.contracts.loadreport import Latencies, Level, LoadtestReport
from textmill.contracts.loadtest import Second

_COLOURS = {"yes": "green", "no": "red", "undecided": "yellow", "invalid": "yellow", "measured": "bold"}
_MOST_ROWS = 24


class LiveTable:
    """On a terminal a table that grows; elsewhere a line a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: list[list[str | Text]] = []
        self._stage: StageStarted | None = None
        self._now = "starting"
        self._live = Live(console=console, refresh_per_second=4, transient=False) if console.is_terminal else None

    def __enter__(self) -> "LiveTable":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._now = ""
            self._live.update(self._drawn())
            self._live.stop()

    def show(self, event: LoadtestEvent) -> None:
        if event.stage is not None:
            self._stage = event.stage
            self._now = f"stage {event.stage.number}, {event.stage.purpose}: calibrating"
        elif event.second is not None and self._stage is not None:
            self._now = f"stage {self._stage.number} at {self._stage.load:g}: {_second(event.second)}"
        elif event.level is not None:
            self._rows.append(_row(event.level))
            if self._live is None:
                self._console.print("  ".join(str(cell) for cell in self._rows[-1]), highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.update(self._drawn())

    def _drawn(self) -> Group:
        table = Table(*_COLUMNS, box=None, pad_edge=False)
        for row in self._rows[-_MOST_ROWS:]:
            table.add_row(*row)
        return Group(table, Text(self._now, "dim"))


_COLUMNS = ("stage", "load", "req/s", "tok/s", "TTFT p50", "p99", "ITL p50", "e2e p50", "failed", "SLO")


def _row(level: Level) -> list[str | Text]:
    name = f"{level.number}{level.side if level.purpose == 'compare' else ''}"
    return [
        name, f"{level.load:g}", f"{level.requests_per_s:.3g}", f"{level.output_tokens_per_s:.0f}",
        _ms(level.ttft_ms, "p50"), _ms(level.ttft_ms, "p99"), _ms(level.itl_ms, "p50"), _ms(level.e2e_ms, "p50"),
        str(sum(level.errors.values())), _slo(level),
    ]  # fmt: skip


def _ms(latency: Latencies | None, field: str) -> str:
    value: float | None = getattr(latency, field) if latency is not None else None
    return "–" if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.2f} ms"


def _slo(level: Level) -> Text:
    if not level.valid:
        return Text("invalid: " + "; ".join(doubt.code for doubt in level.doubts), "yellow")
    if level.judgement is None:
        return Text("")
    if level.judgement.met:
        return Text("met" if level.judgement.evidence else "met (few requests)", "green")
    return Text("missed", "red")


def _second(second: Second) -> str:
    ttft = "–" if second.ttft_p50_ms is None else f"{second.ttft_p50_ms:.0f} ms"
    return (
        f"{second.phase.value.replace('_', ' ')}, second {second.at_s}, {second.in_flight} in flight, "
        f"{second.succeeded} answered, {second.output_tokens} tokens, TTFT {ttft}"
    )


def print_verdict(report: LoadtestReport, folder: Path, console: Console) -> None:
    verdict = report.verdict
    console.print()
    console.print(verdict.headline, style=_COLOURS[verdict.answer], markup=False, highlight=False)
    for line in (*verdict.reasons, *verdict.advice):
        console.print(line, markup=False, highlight=False)
    console.print(f"report: {(folder / 'report.html').resolve()}", markup=False, highlight=False, soft_wrap=True)
