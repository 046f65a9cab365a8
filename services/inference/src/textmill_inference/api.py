"""The control routes: deploy, evaluate, and read what came of it. Load tests have routes of their own."""

from typing import Annotated, TypeVar

from fastapi import APIRouter, Query

from textmill.contracts.base import StoredContract
from textmill.contracts.jobs import EvaluateJob
from textmill.contracts.serving import EvaluationReport
from textmill.errors import NotFound
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.evaluation.evaluate import evaluation_key
from textmill_inference.rollout.api import deployment_router
from textmill_inference.rollout.deployments import Deployments

ReportT = TypeVar("ReportT", bound=StoredContract)
Limit = Annotated[int, Query(ge=1, le=500)]


def build_router(jobs: Jobs, store: ObjectStore, deployments: Deployments) -> APIRouter:
    router = APIRouter()
    router.include_router(deployment_router(deployments, jobs))
    router.include_router(submission_router("/v1/evaluations", EvaluateJob, jobs), tags=["evaluations"])
    router.include_router(_report_routes(store))
    return router


def _report_routes(store: ObjectStore) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/evaluations", tags=["evaluations"], summary="Evaluations, oldest first, without their answers")
    def list_evaluations(after: str = "", limit: Limit = 50) -> Page:
        page = _reports(store, "evaluations/", EvaluationReport, after, limit)
        return page.model_copy(update={"items": [_without_answers(report) for report in page.items]})

    @router.get("/v1/evaluations/{evaluation_id}", tags=["evaluations"], summary="One evaluation with all answers")
    def get_evaluation(evaluation_id: str) -> EvaluationReport:
        return EvaluationReport.model_validate_json(
            _read(store, evaluation_key(evaluation_id), "evaluation", evaluation_id)
        )

    return router


def _reports(store: ObjectStore, prefix: str, contract: type[ReportT], after: str, limit: int) -> Page:
    """``after`` and ``next_after`` are ids, which sort by time."""
    items: list[ReportT] = []
    for info in store.list(prefix, after=f"{prefix}{after}/report.json" if after else ""):
        if not info.key.endswith("/report.json"):
            continue
        items.append(contract.model_validate_json(store.get(info.key)))
        if len(items) == limit:
            return Page(items=items, next_after=info.key.removeprefix(prefix).removesuffix("/report.json"))
    return Page(items=items)


def _without_answers(report: EvaluationReport) -> EvaluationReport:
    before, after = (score.model_copy(update={"answers": ()}) for score in (report.before, report.after))
    return report.model_copy(update={"before": before, "after": after})


def _read(store: ObjectStore, key: str, what: str, name: str) -> bytes:
    try:
        return store.get(key)
    except NotFound as exc:
        raise NotFound(f"no report of {what} {name!r} (yet): GET /v1/jobs tells how far its job is") from exc
