"""What the demo's model holds on this machine: its capacity within an SLO, direct and through the gateway.

``make bench-serving``: starts vLLM with SmolLM2-135M through our own supervisor, searches for the highest number of
concurrent requests within the SLO at the engine and at the gateway in front of it, then compares the two at one load in
turns. Writes bench/results/serving.json and docs/serving-capacity.md's table. Half an hour. The engine has all cores
but the last, which the load generator and the gateway share.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textmill.contracts.capacity import CapacityOptions
from textmill.contracts.jobs import LoadtestJob
from textmill.contracts.load import Fixed, MadeUpPrompts, Traffic
from textmill.contracts.loadoptions import KeyFrom, LoadtestEvent, Versus
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.slo import Limit, Slo
from textmill.store import MemoryStore
from textmill.worker import JobContext
from textmill_inference.engine.launcher import Care
from textmill_inference.engine.port import ModelFolder
from textmill_inference.engine.supervisor import LocalEngine
from textmill_inference.engine.vllm_launcher import VllmLauncher
from textmill_inference.loadtest.generator import Generator
from textmill_inference.loadtest.job import Loadtester
from textmill_inference.loadtest.keyrefs import KeySource
from textmill_trainer.base_model import default_folder, ensure_base_model

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "bench" / "results" / "serving.json"
PAGE = ROOT / "docs" / "serving-capacity.md"
BEGIN, END = "<!-- table: make bench-serving -->", "<!-- end of table -->"
MODEL = "smollm2-135m"
GATEWAY_KEY = "sk-bench"
"""The key that bench/gateway_served.py accepts."""
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 32
SLO = Slo(
    limits=(Limit(measure="ttft", percent=95, ms=2_000), Limit(measure="per_token", percent=95, ms=100)),
    error_share=0.01,
)


def main() -> None:
    options = _options()
    engine_cores, load_cores = _cores()
    with (
        tempfile.TemporaryDirectory(prefix="bench-serving-") as scratch,
        _engine(Path(scratch), engine_cores) as engine,
        _gateway(engine, load_cores) as gateway,
    ):
        bench = Bench(options, load_cores, engine, gateway, Path(options.keep or scratch))
        found = {
            "direct": bench.capacity("direct", engine, None),
            "gateway": bench.capacity("gateway", gateway, KeyFrom(env="BENCH_KEY")),
        }
        load = int(min(report.capacity.low or 1 for report in found.values() if report.capacity))
        versus = bench.compare(load)
    _write(found, versus, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each stage")
    parser.add_argument("--start", type=float, default=8.0, help="the first number of concurrent requests")
    parser.add_argument("--max-stages", type=int, default=40, help="of each search")
    parser.add_argument("--max-seconds", type=float, default=1_200.0, help="of each search")
    parser.add_argument("--rounds", type=int, default=3, help="A B B A of the comparison")
    parser.add_argument("--keep", default="", help="a folder for the two searches' HTML reports")
    parser.add_argument("--trial", action="store_true", help="write nothing: print what would be written")
    return parser.parse_args()


def _cores() -> tuple[set[int], set[int]]:
    """For the engine, and for the load generator with the gateway."""
    cores = sorted(os.sched_getaffinity(0))
    return (set(cores[:-1]), {cores[-1]}) if len(cores) > 1 else (set(cores), set(cores))


class Bench:
    """Runs load tests here, in process, as the service's worker would."""

    def __init__(self, options: argparse.Namespace, cores: set[int], engine: str, gateway: str, folder: Path) -> None:
        self._options = options
        self._engine = engine
        self._gateway = gateway
        self._folder = folder
        self._tester = Loadtester(
            engine,
            keys=KeySource(environ={"BENCH_KEY": GATEWAY_KEY}, prefix=""),
            generator=lambda key, traces: Generator(key=key, cores=tuple(sorted(cores)), read_trace=traces),
            listener=_tell,
        )

    def capacity(self, name: str, url: str, key: KeyFrom | None) -> LoadtestReport:
        options = self._options
        search = CapacityOptions(
            start=options.start, max_load=512, resolution=0.1, max_stages=options.max_stages,
            max_seconds=options.max_seconds,
        )  # fmt: skip
        print(f"-- capacity, {name}", flush=True)
        return self._play(name, target_url=url, key_from=key, capacity=search)

    def compare(self, load: int) -> LoadtestReport:
        versus = Versus(
            target_url=self._gateway, model=MODEL, key_from=KeyFrom(env="BENCH_KEY"), rounds=self._options.rounds
        )
        print(f"-- direct and through the gateway in turns, {load} concurrent", flush=True)
        return self._play("versus", target_url=self._engine, concurrencies=(load,), versus=versus)

    def _play(self, name: str, **asked: Any) -> LoadtestReport:
        traffic = Traffic(
            prompts=MadeUpPrompts(lengths=Fixed(value=PROMPT_TOKENS)), output=Fixed(value=OUTPUT_TOKENS),
            exact_output=True,
        )  # fmt: skip
        seconds = self._options.seconds
        job = LoadtestJob(
            model=MODEL, traffic=traffic, slo=SLO, seconds_per_level=seconds, metrics_url=f"{self._engine}/metrics",
            **asked,
        )  # fmt: skip
        ctx = JobContext(MemoryStore(), 1, "scratch/")
        report = LoadtestReport.model_validate(self._tester(job, ctx).manifest)
        print(report.verdict.headline, *report.verdict.reasons, sep="\n", flush=True)
        (self._folder / f"{name}.html").write_bytes(ctx.store.get(report.files["report.html"]))
        return report


def _tell(event: LoadtestEvent) -> None:
    level = event.level
    if level is not None:
        judged = "" if level.judgement is None else level.judgement.why
        figures = f"{level.load:6g} concurrent {level.output_tokens_per_s:8.1f} tok/s"
        print(f"{level.number:3} {level.side} {figures}  {judged}", flush=True)


@contextmanager
def _engine(scratch: Path, cores: set[int]) -> Iterator[str]:
    """vLLM under our supervisor; gives its URL. It inherits the cores."""
    folder = ensure_base_model(default_folder())
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    engine = LocalEngine(MODEL, VllmLauncher(2048, 1), scratch / "engine.log", Care(start_timeout_s=600))
    try:
        engine.serve(ModelFolder(folder), threading.Event())
        os.sched_setaffinity(0, ours)
        yield engine.url
    finally:
        engine.stop()


@contextmanager
def _gateway(engine: str, cores: set[int]) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "bench" / "gateway_served.py"), engine, "--model", MODEL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, cores)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


# -- the result --------------------------------------------------------------------------------------------------------


def _row(name: str, report: LoadtestReport) -> dict[str, Any]:
    """The confirmed capacity, and the figures of the stages at its low end."""
    capacity = report.capacity
    assert capacity is not None
    held = [v for v in report.levels if v.valid and capacity.low is not None and v.load == capacity.low]
    middle = sorted(held, key=lambda v: v.output_tokens_per_s)[len(held) // 2] if held else None
    return {
        "target": name,
        "capacity_low": capacity.low,
        "capacity_high": capacity.high,
        "confidence": capacity.confidence,
        "stopped": capacity.stopped,
        "stages": len(report.levels),
        "invalid_stages": report.budget.invalid_stages,
        "seconds": round(report.seconds),
        "at_low": None if middle is None else {
            "output_tokens_per_s": round(middle.output_tokens_per_s, 1),
            "requests_per_s": round(middle.requests_per_s, 2),
            "ttft_p50_ms": middle.ttft_ms.p50 if middle.ttft_ms else None,
            "ttft_p90_ms": middle.ttft_ms.p90 if middle.ttft_ms else None,
            "per_token_p50_ms": middle.per_token_ms.p50 if middle.per_token_ms else None,
            "per_token_p90_ms": middle.per_token_ms.p90 if middle.per_token_ms else None,
        },
        "budget": report.budget.model_dump(mode="json"),
        "knee": report.knee.model_dump(mode="json") if report.knee else None,
    }  # fmt: skip


def _write(found: dict[str, LoadtestReport], versus: LoadtestReport, options: argparse.Namespace) -> None:
    comparison = versus.comparisons[0] if versus.comparisons else None
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "model": MODEL,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "slo": SLO.model_dump(mode="json"),
        "rows": [_row(name, report) for name, report in found.items()],
        "versus": comparison.model_dump(mode="json") if comparison else None,
    }
    table = _table(result)
    if options.trial:
        print(json.dumps(result, indent=1), table, sep="\n")
        return
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def _table(result: dict[str, Any]) -> str:
    lines = [
        "| target | capacity (concurrent requests) | at its low end: tokens/s | TTFT p50 / p90 ms "
        "| per token p50 / p90 ms | stages |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        at = row["at_low"] or {}
        ends = f"{_cell(row['capacity_low'])} to {_cell(row['capacity_high'])} ({row['confidence']:.0%} confidence)"
        lines.append(
            f"| {row['target']} | {ends} | {_cell(at.get('output_tokens_per_s'))} "
            f"| {_cell(at.get('ttft_p50_ms'))} / {_cell(at.get('ttft_p90_ms'))} "
            f"| {_cell(at.get('per_token_p50_ms'))} / {_cell(at.get('per_token_p90_ms'))} | {row['stages']} |"
        )
    versus = result["versus"]
    if versus is not None:
        tokens = next((r for r in versus["rows"] if r["name"] == "output tokens"), None)
        if tokens is not None:
            lines += [
                "",
                f"In turns at {versus['load']:g} concurrent requests ({versus['pairs']} pairs of stages): "
                f"{tokens['a']:.1f} tokens/s direct, {tokens['b']:.1f} through the gateway; the difference is "
                f"{tokens['difference']:+.1f} ({tokens['low']:+.1f} to {tokens['high']:+.1f}, 95 % confidence).",
            ]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


if __name__ == "__main__":
    main()
