"""The load tests' routes: submit, list, look at, follow, cancel, compare, and fetch the report as a page or a table."""

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from textmill.contracts.base import Contract
from textmill.contracts.jobs import JobState, JobView, LoadtestJob, Progress
from textmill.contracts.loadreport import Comparison, LoadtestReport, Verdict
from textmill.errors import Conflict, JobFailed, NotFound
from textmill.feeds import BEGINNING
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.loadtest.compare import compare_runs
from textmill_inference.loadtest.events import event_feeds, parse_event_id, read_owner
from textmill_inference.loadtest.job import Loadtester, loadtest_key, name_owner, read_stages

LoadtestId = Annotated[str, Path(pattern=r"^lt_[0-9a-f]{32}$")]
Limit = Annotated[int, Query(ge=1, le=500)]
_TYPES = {
    "report.html": "text/html; charset=utf-8",
    "report.csv": "text/csv; charset=utf-8",
    "series.json": "application/json",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page needs no script and nothing from elsewhere; what a target echoed into it must not get any."""


class LoadtestView(Contract):
    """A load test and how far it is. ``report`` is there when it has succeeded."""

    loadtest_id: str
    job_id: str
    model: str
    target_url: str | None
    state: JobState
    progress: Progress | None = None
    error: str | None = None
    verdict: Verdict | None = None
    report: LoadtestReport | None = None


class RunComparison(BaseModel):
    """Two tests at each load that both measured. [low, high] holds b less a with 95 % confidence."""

    a: str
    b: str
    comparisons: list[Comparison]


def loadtest_router(jobs: Jobs, store: ObjectStore, tester: Loadtester) -> APIRouter:
    router = APIRouter(tags=["loadtests"])

    def before(job: LoadtestJob) -> None:
        tester.check(job)
        name_owner(store, job)

    router.include_router(submission_router("/v1/loadtests", LoadtestJob, jobs, before))
    router.include_router(_following(jobs, store))  # before the files, whose names would match its paths
    router.include_router(_reading(jobs, store))
    return router


def _reading(jobs: Jobs, store: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/loadtests")

    @router.get("", summary="Load tests, oldest first, without their stages")
    def list_loadtests(after: str = "", limit: Limit = 50) -> Page:
        """``after`` and ``next_after`` are job ids, as in /v1/jobs."""
        ids = list(islice(jobs.job_ids("loadtest", after), limit + 1))
        page = Page(items=[], next_after=ids[limit - 1] if len(ids) > limit else None)
        for job_id in ids[:limit]:
            try:
                view = _view(store, jobs.view("loadtest", job_id))
                page.items.append(view.model_copy(update={"report": None}))
            except JobFailed as exc:
                page.unreadable.append(str(exc))
        return page

    @router.get("/{loadtest_id}", summary="One load test: how far it is, and its report when it has ended")
    def get_loadtest(loadtest_id: LoadtestId) -> LoadtestView:
        return _view(store, jobs.view("loadtest", read_owner(store, loadtest_id).job_id))

    @router.get("/{loadtest_id}/stages/{number}", summary="All that one stage measured, with its histograms")
    def get_stage(loadtest_id: LoadtestId, number: Annotated[int, Path(ge=1, le=100_000)]) -> Response:
        key = f"{_report(store, loadtest_id).files['stages']}{number:04d}.json"
        return Response(store.get(key), media_type="application/json")

    @router.get("/{a}/compare/{b}", summary="Two load tests at the loads that both measured")
    def compare(a: LoadtestId, b: LoadtestId) -> RunComparison:
        left, right = (read_stages(store, _report(store, loadtest_id)) for loadtest_id in (a, b))
        found = compare_runs(left, right)
        if not found:
            raise Conflict(f"{a} and {b} have no load in common that both measured validly; give both the same loads")
        return RunComparison(a=a, b=b, comparisons=found)

    @router.get("/{loadtest_id}/{name}", summary="The report as report.html, report.csv, or series.json")
    def get_file(loadtest_id: LoadtestId, name: str) -> Response:
        if name not in _TYPES:
            raise NotFound(f"a load test has no {name!r}; there are: {', '.join(_TYPES)}")
        body = store.get(_report(store, loadtest_id).files[name])
        return Response(body, media_type=_TYPES[name], headers={"Content-Security-Policy": _POLICY})

    return router


def _following(jobs: Jobs, store: ObjectStore) -> APIRouter:
    router = APIRouter(prefix="/v1/loadtests")
    feeds = event_feeds(store, jobs)

    @router.get("/{loadtest_id}/events", summary="What happens in a load test, as server-sent events")
    async def events(
        loadtest_id: LoadtestId, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        position = parse_event_id(last_event_id) if last_event_id else BEGINNING
        feed = await feeds.open(loadtest_id)
        return StreamingResponse(feeds.follow(feed, position), media_type="text/event-stream")

    @router.post("/{loadtest_id}/cancel", response_model=JobView, summary="Ask a load test to end")
    def cancel(loadtest_id: LoadtestId) -> JobView:
        return jobs.cancel("loadtest", read_owner(store, loadtest_id).job_id)

    return router


def _view(store: ObjectStore, view: JobView) -> LoadtestView:
    job: Any = view.job
    try:
        report = LoadtestReport.model_validate_json(store.get(loadtest_key(job.loadtest_id)))
    except NotFound:
        report = None
    failure = view.result.failure if view.result is not None else None
    return LoadtestView(
        loadtest_id=job.loadtest_id,
        job_id=job.job_id,
        model=job.model,
        target_url=job.target_url,
        state=view.state,
        progress=view.progress,
        error=failure.message if failure else view.last_error,
        verdict=report.verdict if report else None,
        report=report,
    )


def _report(store: ObjectStore, loadtest_id: str) -> LoadtestReport:
    try:
        return LoadtestReport.model_validate_json(store.get(loadtest_key(loadtest_id)))
    except NotFound as exc:
        where = f"GET /v1/loadtests/{loadtest_id} tells why"
        raise NotFound(f"no report of load test {loadtest_id!r} (yet): {where}") from exc
