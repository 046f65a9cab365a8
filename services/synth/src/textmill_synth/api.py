"""HTTP routes for datasets and their records. All plain ``def``: the store blocks, so they run on threads."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from textmill.contracts.datasets import DatasetManifest, Split
from textmill.contracts.jobs import FreezeJob, MixJob, SynthJob
from textmill.errors import NotFound
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_synth.asking.api import ways_router
from textmill_synth.export import EXPORT_MEDIA_TYPES
from textmill_synth.mixture import validate_mixture
from textmill_synth.review_api import review_router
from textmill_synth.stored import RecordLineage, StoredDatasets
from textmill_synth.topics import validate_question_sets

DatasetId = Annotated[str, Path(pattern=r"^ds_[0-9a-f]{32}$")]
RecordId = Annotated[str, Path(pattern=r"^rec_[0-9a-f]{32}$")]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Row = Annotated[int, Query(ge=0, description="rows to skip: the next_after of the page before")]


def datasets_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    """Everything under ``/v1/datasets``, mixtures and frozen sets. What can't work is refused at submission."""
    datasets = StoredDatasets(store)
    router = APIRouter()
    router.include_router(
        submission_router("/v1/datasets", SynthJob, jobs, lambda job: validate_question_sets(job.question_sets)),
        tags=["datasets"],
    )
    router.include_router(submission_router("/v1/mixtures", MixJob, jobs, validate_mixture), tags=["datasets"])
    router.include_router(submission_router("/v1/freezes", FreezeJob, jobs), tags=["review"])
    router.include_router(review_router(store))
    router.include_router(ways_router())
    router.include_router(_read_router(datasets), tags=["datasets"])
    router.include_router(_files_router(datasets), tags=["datasets"])
    return router


def _read_router(datasets: StoredDatasets) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/datasets", summary="Datasets, oldest first; those that hold a document")
    def list_datasets(
        document_id: str | None = None, after: str = "", limit: Annotated[int, Query(ge=1, le=500)] = 100
    ) -> Page:
        found: list[DatasetManifest] = []
        for dataset_id in datasets.dataset_ids(after):
            manifest = datasets.manifest(dataset_id)
            if document_id is None or document_id in manifest.document_ids:
                found.append(manifest)
            if len(found) == limit:
                return Page(items=found, next_after=dataset_id)
        return Page(items=found)

    @router.get("/v1/datasets/{dataset_id}", summary="One dataset's manifest")
    def get_dataset(dataset_id: DatasetId) -> DatasetManifest:
        return datasets.manifest(dataset_id)

    @router.get("/v1/datasets/{dataset_id}/records", summary="Records of a split, in training order")
    def get_records(dataset_id: DatasetId, split: Split = "train", after: Row = 0, limit: Limit = 100) -> Page:
        return _page(datasets.records(dataset_id, split, after, limit), after, limit)

    @router.get("/v1/datasets/{dataset_id}/rejects", summary="What was asked for and not accepted, and why")
    def get_rejects(dataset_id: DatasetId, after: Row = 0, limit: Limit = 100) -> Page:
        return _page(datasets.rejects(dataset_id, after, limit), after, limit)

    @router.get("/v1/datasets/{dataset_id}/drops", summary="Rows that were made and left out, whole, and by which rule")
    def get_drops(dataset_id: DatasetId, after: Row = 0, limit: Limit = 100) -> Page:
        return _page(datasets.drops(dataset_id, after, limit), after, limit)

    @router.get("/v1/records/{record_id}/lineage", summary="The sentence of the document that an answer comes from")
    def get_lineage(record_id: RecordId, dataset_id: str) -> RecordLineage:
        return datasets.lineage(dataset_id, record_id)

    @router.delete(
        "/v1/datasets/{dataset_id}", status_code=204, summary="Delete, unless models or datasets were made of it"
    )
    def delete_dataset(dataset_id: DatasetId) -> Response:
        datasets.delete(dataset_id)
        return Response(status_code=204)

    return router


def _files_router(datasets: StoredDatasets) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/datasets/{dataset_id}/exports/{name}", summary="The records as a file: parquet, alpaca, openai, ..."
    )
    def get_export(dataset_id: DatasetId, name: str, split: Split = "train") -> StreamingResponse:
        manifest = datasets.manifest(dataset_id)
        key = manifest.records_keys[split] if name == "parquet" else manifest.exports.get(name)
        if key is None or (name != "parquet" and split != "train"):
            raise NotFound(
                f"no export {name!r} of {split!r}: parquet has all splits, {', '.join(manifest.exports)} train"
            )
        media_type = EXPORT_MEDIA_TYPES.get(name, "application/octet-stream")
        file_name = f"{dataset_id}-{key.rsplit('/', 1)[-1]}"
        headers = {"Content-Disposition": f'attachment; filename="{file_name}"'}
        return StreamingResponse(datasets.store.stream(key), media_type=media_type, headers=headers)

    @router.get("/v1/datasets/{dataset_id}/card", summary="The dataset card", response_class=PlainTextResponse)
    def get_card(dataset_id: DatasetId) -> PlainTextResponse:
        text = datasets.store.get(datasets.manifest(dataset_id).card_key).decode()
        return PlainTextResponse(text, media_type="text/markdown; charset=utf-8")

    return router


def _page(items: Sequence[object], after: int, limit: int) -> Page:
    return Page(items=list(items), next_after=str(after + limit) if len(items) == limit else None)
