"""The control routes: deploy, evaluate, load-test, and read what came of it. The hot path is the gateway's."""

from typing import Annotated, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel

from textmill.contracts.base import StoredContract
from textmill.contracts.jobs import DeployJob, EvaluateJob, LoadtestJob
from textmill.contracts.serving import Deployment, EvaluationReport, LoadtestReport
from textmill.errors import NotFound
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.evaluation.evaluate import evaluation_key
from textmill_inference.loadtest.job import check_job, loadtest_key
from textmill_inference.rollout.deployments import Deployments

ReportT = TypeVar("ReportT", bound=StoredContract)
Limit = Annotated[int, Query(ge=1, le=500)]


class ServedModel(BaseModel):
    """A name that the gateway answers for. ``deployment`` is None for the base model and attached engines."""

    name: str
    ready: bool
    trouble: str = ""
    deployment: Deployment | None = None


def build_router(jobs: Jobs, store: ObjectStore, deployments: Deployments) -> APIRouter:
    router = APIRouter()
    router.include_router(
        submission_router("/v1/deployments", DeployJob, jobs, deployments.check_job), tags=["deployments"]
    )
    router.include_router(submission_router("/v1/evaluations", EvaluateJob, jobs), tags=["evaluations"])
    router.include_router(submission_router("/v1/loadtests", LoadtestJob, jobs, check_job), tags=["loadtests"])
    router.include_router(_deployment_routes(deployments))
    router.include_router(_report_routes(store))
    return router


def _deployment_routes(deployments: Deployments) -> APIRouter:
    router = APIRouter(prefix="/v1/deployments", tags=["deployments"])

    def served(name: str, deployment: Deployment | None) -> ServedModel:
        engine = deployments.engines().get(name)
        if engine is None:
            return ServedModel(name=name, ready=False, trouble="waits for its turn to start", deployment=deployment)
        return ServedModel(name=name, ready=engine.ready, trouble=engine.trouble, deployment=deployment)

    @router.get("", summary="All served names")
    def list_deployments() -> Page:
        stored = {deployment.name: deployment for deployment in deployments.stored()}
        names = sorted({*stored, *deployments.engines()})
        return Page(items=[served(name, stored.get(name)) for name in names])

    @router.get("/{name}", summary="One served name")
    def get_deployment(name: str) -> ServedModel:
        if any(name == deployment.name for deployment in deployments.stored()):
            return served(name, deployments.get(name))
        if name in deployments.engines():
            return served(name, None)
        raise NotFound(f"no deployment {name!r}; GET /v1/deployments lists them")

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

    @router.get("/v1/loadtests", tags=["loadtests"], summary="Load tests, oldest first")
    def list_loadtests(after: str = "", limit: Limit = 50) -> Page:
        return _reports(store, "loadtests/", LoadtestReport, after, limit)

    @router.get("/v1/loadtests/{loadtest_id}", tags=["loadtests"], summary="One load test's report")
    def get_loadtest(loadtest_id: str) -> LoadtestReport:
        return LoadtestReport.model_validate_json(_read(store, loadtest_key(loadtest_id), "load test", loadtest_id))

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
