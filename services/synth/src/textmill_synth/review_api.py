"""HTTP routes of the review. All plain ``def``: the store blocks, so they run on threads."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Path, Query

from textmill.contracts.review import (
    DecisionView,
    NewDecision,
    RecordFilter,
    RecordHistory,
    ReviewSummary,
)
from textmill.errors import BadRequest
from textmill.http import Page
from textmill.store import ObjectStore
from textmill_synth.review import ReviewLog
from textmill_synth.reviewing import Reviews
from textmill_synth.stored import StoredDatasets

DatasetId = Annotated[str, Path(pattern=r"^ds_[0-9a-f]{32}$")]
RecordId = Annotated[str, Path(pattern=r"^rec_[0-9a-f]{32}$")]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Row = Annotated[int, Query(ge=0, description="the next_after of the page before")]
Where = Annotated[RecordFilter, Depends(RecordFilter)]
Author = Annotated[str | None, Header(alias="X-Author", min_length=1, max_length=200)]
_BASE = "/v1/datasets/{dataset_id}/review"


def review_router(store: ObjectStore) -> APIRouter:
    """Everything under ``/v1/datasets/{id}/review``."""
    log = ReviewLog(store)
    reviews = Reviews(StoredDatasets(store), log)
    router = APIRouter(tags=["review"])
    router.include_router(_read_router(reviews))
    router.include_router(_decision_router(reviews))
    return router


def _read_router(reviews: Reviews) -> APIRouter:
    router = APIRouter()

    @router.get(f"{_BASE}/summary", summary="How far the review has come, and who took part")
    def get_summary(dataset_id: DatasetId) -> ReviewSummary:
        return reviews.summary(dataset_id)

    @router.get(f"{_BASE}/records", summary="Records as the review leaves them, filtered. A page may be short")
    def get_records(dataset_id: DatasetId, where: Where, after: Row = 0, limit: Limit = 100) -> Page:
        return _page(*reviews.records(dataset_id, where, after, limit))

    @router.get(f"{_BASE}/records/{{record_id}}", summary="All versions of a record, and all decisions on it")
    def get_record(dataset_id: DatasetId, record_id: RecordId) -> RecordHistory:
        return reviews.history(dataset_id, record_id)

    @router.get(f"{_BASE}/rejects", summary="What synth rejected, and which of it was taken up by an edit")
    def get_rejects(dataset_id: DatasetId, where: Where, after: Row = 0, limit: Limit = 100) -> Page:
        return _page(*reviews.rejects(dataset_id, where, after, limit))

    return router


def _decision_router(reviews: Reviews) -> APIRouter:
    router = APIRouter()

    @router.get(f"{_BASE}/decisions", summary="Who decided what and when, in the order of the decisions")
    def get_decisions(dataset_id: DatasetId, author: str | None = None, after: Row = 0, limit: Limit = 100) -> Page:
        reviews.datasets.manifest(dataset_id)
        state = reviews.log.state(dataset_id)
        numbers = [n for n in range(after + 1, state.number + 1) if author in (None, state.decisions[n].author)]
        items = [state.view(state.decisions[n]) for n in numbers[:limit]]
        return Page(items=items, next_after=str(items[-1].number) if len(numbers) > limit else None)

    @router.post(
        f"{_BASE}/decisions",
        status_code=201,
        summary="Approve, reject, edit or undo: one record, many by id, or all that a filter matches",
    )
    def post_decision(
        dataset_id: DatasetId, new: Annotated[NewDecision, Body()], x_author: Author = None
    ) -> DecisionView:
        decision = reviews.decide(dataset_id, _author(new.author, x_author), new)
        return reviews.log.state(dataset_id).view(decision)

    return router


def _author(in_body: str | None, in_header: str | None) -> str:
    if in_body is not None and in_header is not None and in_body != in_header:
        raise BadRequest(f"the body says that {in_body!r} decides, X-Author says {in_header!r}: say one of them")
    author = in_body or in_header
    if author is None or not author.strip():
        raise BadRequest('every decision has an author: send the header X-Author, or "author" in the body')
    return author


def _page(items: Sequence[object], next_row: int | None) -> Page:
    return Page(items=list(items), next_after=None if next_row is None else str(next_row))
