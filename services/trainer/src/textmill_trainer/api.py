"""HTTP routes for runs and models. Plain ``def``, since the store blocks, so they run on threads; save the stream."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response, StreamingResponse

from textmill.contracts.jobs import TrainJob
from textmill.contracts.runs import ModelManifest
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_trainer.events import parse_event_id, run_feeds
from textmill_trainer.reports import StoredReports
from textmill_trainer.stored import RunView, StoredModels, StoredRuns

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-f]{32}$")]
ReportName = Annotated[str, Path(pattern=r"^[a-z0-9_-]{1,64}$")]
ModelId = Annotated[str, Path(pattern=r"^mdl_[0-9a-f]{32}$")]
Limit = Annotated[int, Query(ge=1, le=500)]


def runs_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    """``POST /v1/runs`` trains; the rest reads what runs have written."""
    runs = StoredRuns(store)
    reports = StoredReports(store)
    feeds = run_feeds(store, jobs)
    router = APIRouter(tags=["runs"])
    router.include_router(submission_router("/v1/runs", TrainJob, jobs))

    @router.get("/v1/runs", summary="Runs that have trained a step, oldest first")
    def list_runs(after: str = "", limit: Limit = 100) -> Page:
        ids = list(islice(runs.run_ids(after), limit + 1))
        return Page(items=[runs.run(i) for i in ids[:limit]], next_after=ids[limit - 1] if len(ids) > limit else None)

    @router.get("/v1/runs/{run_id}", summary="How far a run has come")
    def get_run(run_id: RunId) -> RunView:
        return runs.run(run_id)

    @router.get("/v1/runs/{run_id}/metrics", summary="A run's metrics, a JSON line each")
    def get_metrics(run_id: RunId) -> Response:
        return Response(runs.metrics(run_id), media_type="application/x-ndjson")

    @router.get("/v1/runs/{run_id}/events", summary="A run's steps and evaluations as they come, as server-sent events")
    async def follow(
        run_id: RunId,
        from_step: Annotated[int, Query(ge=0)] = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        position = parse_event_id(last_event_id) if last_event_id else (from_step, -1)
        feed = await feeds.open(run_id)
        return StreamingResponse(feeds.follow(feed, position), media_type="text/event-stream")

    @router.get("/v1/runs/{run_id}/reports", summary="Names of the reports that a run has written")
    def list_reports(run_id: RunId) -> list[str]:
        return reports.names(run_id)

    @router.get("/v1/runs/{run_id}/reports/{name}", summary="One report of a run, of its newest attempt that has it")
    def get_report(run_id: RunId, name: ReportName) -> Response:
        return Response(reports.report(run_id, name), media_type="application/json")

    return router


def models_router(store: ObjectStore) -> APIRouter:
    models = StoredModels(store)
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="Published models, oldest first")
    def list_models(after: str = "", limit: Limit = 100) -> Page:
        ids = list(islice(models.model_ids(after), limit + 1))
        items = [models.manifest(i) for i in ids[:limit]]
        return Page(items=items, next_after=ids[limit - 1] if len(ids) > limit else None)

    @router.get("/v1/models/{model_id}", summary="One model's manifest, with its lineage")
    def get_model(model_id: ModelId) -> ModelManifest:
        return models.manifest(model_id)

    return router
