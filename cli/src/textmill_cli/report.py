"""The report of a run: what was made, what it cost, and whether the model knows it. JSON, and a page with plots.

Every figure is read from what the services stored; nothing is measured here save the wall time it is given.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from pydantic import JsonValue

from textmill.contracts.anomalies import AnomalyReport
from textmill.contracts.datasets import DatasetManifest
from textmill.contracts.documents import CorpusManifest
from textmill.contracts.jobs import JobView
from textmill.contracts.loadreport import LoadtestReport
from textmill.contracts.masking import MaskingReport
from textmill.contracts.packing import PackingReport
from textmill.contracts.runs import EvalMetrics, ModelManifest, StepMetrics
from textmill.contracts.serving import Deployment, EvaluationReport
from textmill.contracts.trainforecast import TrainForecast
from textmill.contracts.verdict import TrainVerdict
from textmill.errors import NotFound
from textmill_cli.client import Client

_Report = TypeVar("_Report", TrainForecast, TrainVerdict, MaskingReport, PackingReport, AnomalyReport)
_TEXTS = {"preview", "seen"}
"""Of a suspect: for the page, not for the figures."""


@dataclass(frozen=True)
class Findings:
    """All that a chain of jobs has stored, as far as it came."""

    views: Sequence[JobView]
    corpus: CorpusManifest | None = None
    dataset: DatasetManifest | None = None
    rejects: Sequence[dict[str, Any]] = ()
    model: ModelManifest | None = None
    steps: Sequence[StepMetrics] = ()
    evals: Sequence[EvalMetrics] = ()
    forecast: TrainForecast | None = None
    masking: MaskingReport | None = None
    packing: PackingReport | None = None
    anomalies: AnomalyReport | None = None
    verdict: TrainVerdict | None = None
    deployment: Deployment | None = None
    evaluation: EvaluationReport | None = None
    loadtest: LoadtestReport | None = None


def gather(client: Client, job_id: str) -> Findings:
    """Read the results of the chain that begins with this job."""
    views = list(client.chain(job_id))
    made: dict[str, Any] = {}
    for view in views:
        if view.result is not None and view.result.output is not None:
            made[view.job.kind] = view.result.output.manifest
    dataset = DatasetManifest.model_validate(made["synth"]) if "synth" in made else None
    model = ModelManifest.model_validate(made["train"]) if "train" in made else None
    steps, evals = _metrics(client, model) if model else ([], [])
    return Findings(
        views=views,
        corpus=CorpusManifest.model_validate(made["corpus"]) if "corpus" in made else None,
        dataset=dataset,
        rejects=_rejects(client, dataset) if dataset else (),
        model=model,
        steps=steps,
        evals=evals,
        forecast=_train_report(client, model, "forecast", TrainForecast) if model else None,
        masking=_train_report(client, model, "masking", MaskingReport) if model else None,
        packing=_train_report(client, model, "packing", PackingReport) if model else None,
        anomalies=_train_report(client, model, "anomalies", AnomalyReport) if model else None,
        verdict=_train_report(client, model, "verdict", TrainVerdict) if model else None,
        deployment=Deployment.model_validate(made["deploy"]) if "deploy" in made else None,
        evaluation=EvaluationReport.model_validate(made["evaluate"]) if "evaluate" in made else None,
        loadtest=LoadtestReport.model_validate(made["loadtest"]) if "loadtest" in made else None,
    )


def _metrics(client: Client, model: ModelManifest) -> tuple[list[StepMetrics], list[EvalMetrics]]:
    lines = client.request("GET", "trainer", f"/v1/runs/{model.lineage.run_id}/metrics").splitlines()
    steps, evals = [], []
    for line in lines:
        if json.loads(line)["kind"] == "step":
            steps.append(StepMetrics.model_validate_json(line))
        else:
            evals.append(EvalMetrics.model_validate_json(line))
    return steps, evals


def _train_report(client: Client, model: ModelManifest, name: str, contract: type[_Report]) -> _Report | None:
    """None of a run from before such reports were written."""
    try:
        body = client.request("GET", "trainer", f"/v1/runs/{model.lineage.run_id}/reports/{name}")
    except NotFound:
        return None
    return contract.model_validate_json(body)


def _rejects(client: Client, dataset: DatasetManifest) -> list[dict[str, Any]]:
    try:
        body = client.request("GET", "synth", f"/v1/datasets/{dataset.dataset_id}/rejects?limit=20")
    except NotFound:
        return []
    answer = json.loads(body)
    items: list[dict[str, Any]] = answer["items"] if isinstance(answer, dict) else answer
    return items


def as_json(found: Findings, seconds: float | None) -> dict[str, JsonValue]:
    """The figures, with the same names as in the services' contracts."""
    report: dict[str, Any] = {"schema_version": 1, "seconds": seconds, "stages": [_stage(v) for v in found.views]}
    if found.corpus:
        report["corpus"] = {"passages": found.corpus.passages, "documents": len(found.corpus.document_ids)}
    if found.dataset:
        report["records"], report["llm"] = _records(found.dataset), _llm(found.dataset)
    if found.model:
        report["training"] = {**found.model.training.model_dump(), "merge": found.model.merge.model_dump()}
        report["model"] = {"id": found.model.model_id, "name": found.model.name, "base": found.model.lineage.base_model}
    if found.forecast:
        report["forecast"] = found.forecast.model_dump(include={"seconds", "seconds_by_stage", "truth"})
    if found.masking:
        report["masking"] = found.masking.model_dump(mode="json", exclude={"shown", "refused"})
    if found.packing:
        report["packing"] = found.packing.model_dump(mode="json")
    if found.anomalies:
        hidden: Any = {"suspects": {"__all__": _TEXTS}, "surprising": {"__all__": _TEXTS}}
        report["anomalies"] = found.anomalies.model_dump(mode="json", exclude=hidden)
    if found.deployment and found.deployment.parity:
        report["parity"] = found.deployment.parity.model_dump()
    if found.verdict:
        report["verdict"] = found.verdict.model_dump(mode="json")
    if found.evaluation:
        before, after = found.evaluation.before, found.evaluation.after
        report["accuracy"] = {"before": before.accuracy, "after": after.accuracy, "questions": after.questions}
    if found.loadtest:
        report["loadtest"] = found.loadtest.model_dump(mode="json")
    return report


def _records(dataset: DatasetManifest) -> dict[str, JsonValue]:
    return {
        **dataset.counts.model_dump(),
        "by_strategy": {name: counts.model_dump() for name, counts in dataset.counts_by_strategy.items()},
        "rungs": {rung: found.model_dump() for rung, found in dataset.rungs.items()},
        "rows_made": dataset.rows_made,
        "rows": dict(dataset.records),
        "rows_dropped": dict(dataset.dropped_by_rule),
    }


def _llm(dataset: DatasetManifest) -> dict[str, JsonValue]:
    return {
        "calls": dataset.calls,
        "reused": dataset.calls_reused,
        "hedged": dataset.hedged_calls,
        **dataset.cost.model_dump(),
        "budget_spent": dataset.budget_spent.model_dump() if dataset.budget_spent else None,
    }


def _stage(view: JobView) -> dict[str, JsonValue]:
    ended = view.result.finished_at if view.result else None
    seconds = (ended - view.started_at).total_seconds() if ended and view.started_at else None
    return {
        "kind": view.job.kind,
        "job_id": view.job.job_id,
        "state": view.state,
        "attempts": view.attempts,
        "seconds": seconds,
    }


def write(found: Findings, folder: Path, name: str, seconds: float | None) -> Path:
    """Write report.json and report.html; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = as_json(found, seconds)
    (folder / "report.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
    template = resources.files("textmill_cli").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(name=name, found=found, figures=figures, plots=_plots(found))
    html = folder / "report.html"
    html.write_text(page, encoding="utf-8")
    return html


def _plots(found: Findings) -> dict[str, str]:
    plots: dict[str, str] = {}
    if found.steps:
        train = ([s.step for s in found.steps], [s.loss for s in found.steps], "training")
        plots["loss"] = _plot([train, *_eval_series(found.evals)], "step", "loss (nats per token)")
    levels = found.loadtest.levels if found.loadtest else ()
    if levels:
        x = [level.load for level in levels]
        plots["throughput"] = _plot(
            [(x, [v.output_tokens_per_s for v in levels], "")], "concurrent streams", "tokens/s", log_x=True
        )
        series = [
            _claimed([(v.load, v.ttft_ms.p50) for v in levels if v.ttft_ms], "p50"),
            _claimed([(v.load, v.ttft_ms.p90) for v in levels if v.ttft_ms], "p90"),
        ]
        if any(x for x, _, _ in series):
            plots["latency"] = _plot(series, "concurrent streams", "time to first token (ms)", log_x=True)
    return plots


_Series = tuple[Sequence[float], Sequence[float], str]
_EVAL_LABELS = {"eval_loss": "eval split", "heldout_loss": "held-out wordings", "probe_loss": "other wordings"}


def _claimed(points: Sequence[tuple[float, float | None]], label: str) -> _Series:
    """Without the loads at which too few requests were answered to claim the percentile."""
    found = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in found], [y for _, y in found], label


def _eval_series(evals: Sequence[EvalMetrics]) -> list[_Series]:
    series: list[_Series] = []
    for name, label in _EVAL_LABELS.items():
        measured = [(e.step, getattr(e, name)) for e in evals if getattr(e, name) is not None]
        series.append(([step for step, _ in measured], [loss for _, loss in measured], label))
    return series


def _plot(series: Sequence[_Series], x_label: str, y_label: str, log_x: bool = False) -> str:
    """An SVG that stands inside a page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axes = figure.subplots()
    for x, y, label in series:
        if x:
            axes.plot(x, y, marker="o" if len(x) < 40 else "", markersize=3, linewidth=1.4, label=label or None)
    if log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({value for x, _, _ in series for value in x})
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    if any(label for x, _, label in series if x):
        axes.legend(frameon=False)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]
