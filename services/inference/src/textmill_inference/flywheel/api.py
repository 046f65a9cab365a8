"""HTTP routes of the flywheel. All plain ``def``: the store blocks, so they run on threads."""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import StreamingResponse

from textmill.contracts.base import StoredContract
from textmill.contracts.traffic import (
    Deletion,
    Feedback,
    HarvestManifest,
    NewFeedback,
    NewHarvest,
    NewTrace,
    TraceManifest,
    TrafficFilter,
    TrafficPolicy,
)
from textmill.errors import NotFound
from textmill.http import Page
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_inference.flywheel.feedback import feedback_of, keep_feedback
from textmill_inference.flywheel.harvest import HARVESTS, harvest, harvests_with, read_harvest
from textmill_inference.flywheel.judged import Looked, judged, preference_lines
from textmill_inference.flywheel.segments import delete, exchanges, find, read_policy, write_policy
from textmill_inference.flywheel.traces import TRACES, delete_trace, make_trace, read_trace, traces_with

TraceId = Annotated[str, Path(pattern=r"^trc_[0-9a-f]{32}$")]
HarvestId = Annotated[str, Path(pattern=r"^hrv_[0-9a-f]{32}$")]
RequestIdPath = Annotated[str, Path(min_length=1, max_length=128)]
Limit = Annotated[int, Query(ge=1, le=500)]
Where = Annotated[TrafficFilter, Depends(TrafficFilter)]
_JSON_LINES = "application/jsonl"
_PAGE = 1_000
ManifestT = TypeVar("ManifestT", bound=StoredContract)


def traffic_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    """Everything under ``/v1/traffic``, and ``/v1/feedback``."""
    router = APIRouter(tags=["traffic"])
    router.include_router(_log_router(store))
    router.include_router(_feedback_router(store))
    router.include_router(_trace_router(store))
    router.include_router(_harvest_router(store, jobs))
    return router


def _log_router(store: ObjectStore) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/traffic/policy", summary="Who is logged, and for how long")
    def get_policy() -> TrafficPolicy:
        return read_policy(store)

    @router.put("/v1/traffic/policy", summary="Say who is logged. Gateways follow within seconds")
    def put_policy(policy: TrafficPolicy) -> TrafficPolicy:
        write_policy(store, policy)
        return policy

    @router.get("/v1/traffic/exchanges", summary="Logged exchanges, oldest first, at most 1000; narrow by 'since'")
    def list_exchanges(where: Where) -> Page:
        page = list(islice(exchanges(store, where), min(where.limit, _PAGE)))
        return Page(items=page, next_after=page[-1].at.isoformat() if len(page) == _PAGE else None)

    @router.get("/v1/traffic/exchanges/{request_id:path}", summary="All exchanges with this request id")
    def get_exchange(request_id: RequestIdPath) -> Page:
        if found := find(store, request_id):
            return Page(items=list(found))
        raise NotFound(f"no request {request_id!r} in the log: not logged, not written yet, deleted, or too old")

    @router.delete("/v1/traffic/exchanges/{request_id:path}", summary="Delete a request, its answer and its feedback")
    def delete_exchange(request_id: RequestIdPath) -> Deletion:
        gone = delete(store, request_id)
        still_in = [*harvests_with(store, request_id), *traces_with(store, request_id)]
        return gone.model_copy(update={"still_in": still_in})

    return router


def _feedback_router(store: ObjectStore) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/feedback",
        status_code=201,
        response_model=Feedback,
        summary="What you think of an answer: its request id is in the response header x-request-id",
    )
    def post_feedback(new: NewFeedback) -> Response:
        feedback, created = keep_feedback(store, new)
        return Response(feedback.to_json(), status_code=201 if created else 200, media_type="application/json")

    @router.get("/v1/feedback", summary="What was said of a request's answer, oldest first")
    def get_feedback(request_id: Annotated[str, Query(min_length=1, max_length=128)]) -> Page:
        return Page(items=list(feedback_of(store, request_id)))

    @router.get("/v1/traffic/preferences", summary="Preference pairs in JSON lines, as the trainer's upload takes them")
    def get_preferences(where: Where, with_redacted: bool = False) -> StreamingResponse:
        lines = preference_lines(list(judged(store, where, with_redacted, Looked())))
        data = (line.model_dump_json(exclude_none=True).encode() + b"\n" for line in lines)
        return StreamingResponse(data, media_type=_JSON_LINES)

    return router


def _trace_router(store: ObjectStore) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/traffic/traces", status_code=201, summary="Make a replay trace; a load test takes its lines_key")
    def post_trace(new: NewTrace) -> TraceManifest:
        return make_trace(store, new)

    @router.get("/v1/traffic/traces", summary="Traces, oldest first")
    def list_traces(after: str = "", limit: Limit = 50) -> Page:
        return _manifests(store, TRACES, TraceManifest, after, limit)

    @router.get("/v1/traffic/traces/{trace_id}", summary="One trace's figures")
    def get_trace(trace_id: TraceId) -> TraceManifest:
        return read_trace(store, trace_id)

    @router.get("/v1/traffic/traces/{trace_id}/lines", summary="The trace itself, in JSON lines")
    def get_lines(trace_id: TraceId) -> StreamingResponse:
        return StreamingResponse(store.stream(read_trace(store, trace_id).lines_key), media_type=_JSON_LINES)

    @router.delete("/v1/traffic/traces/{trace_id}", status_code=204, summary="Delete a trace")
    def remove_trace(trace_id: TraceId) -> None:
        delete_trace(store, trace_id)

    return router


def _harvest_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/traffic/documents",
        status_code=202,
        summary="Make a dataset of approved and corrected answers: the jobs that do it are submitted",
    )
    def post_harvest(new: NewHarvest) -> HarvestManifest:
        return harvest(store, jobs, new)

    @router.get("/v1/traffic/documents", summary="Harvests, oldest first")
    def list_harvests(after: str = "", limit: Limit = 50) -> Page:
        return _manifests(store, HARVESTS, HarvestManifest, after, limit)

    @router.get("/v1/traffic/documents/{harvest_id}", summary="What a harvest took, left out, and made")
    def get_harvest(harvest_id: HarvestId) -> HarvestManifest:
        return read_harvest(store, harvest_id)

    return router


def _manifests(store: ObjectStore, prefix: str, contract: type[ManifestT], after: str, limit: int) -> Page:
    """``after`` and ``next_after`` are ids, which sort by time."""
    found = list(islice(_manifest_keys(store, prefix, after), limit + 1))
    items = [contract.model_validate_json(store.get(key)) for key in found[:limit]]
    last = found[limit - 1].removeprefix(prefix).partition("/")[0] if len(found) > limit else None
    return Page(items=items, next_after=last)


def _manifest_keys(store: ObjectStore, prefix: str, after: str) -> Iterator[str]:
    start = f"{prefix}{after}/~" if after else ""
    return (info.key for info in store.list(prefix, after=start) if info.key.endswith("/manifest.json"))
