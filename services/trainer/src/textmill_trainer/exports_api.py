"""HTTP routes for a model's files and exports. All plain ``def``: the store blocks, so they run on threads."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from textmill.contracts.exports import ExportManifest
from textmill.contracts.jobs import ExportJob
from textmill.http import submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_trainer.export import ModelFile, StoredFiles

ModelId = Annotated[str, Path(pattern=r"^mdl_[0-9a-f]{32}$")]
ExportId = Annotated[str, Path(pattern=r"^exp_[0-9a-f]{32}$")]
FileName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]


def exports_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    """``POST /v1/exports`` makes one; the rest lists and fetches files."""
    stored = StoredFiles(store)
    router = APIRouter(tags=["models"])
    router.include_router(submission_router("/v1/exports", ExportJob, jobs))

    @router.get("/v1/models/{model_id}/adapter", summary="Files of the model's adapter, as peft reads them")
    def list_adapter(model_id: ModelId) -> list[ModelFile]:
        return stored.files(stored.adapter_prefix(model_id))

    @router.get("/v1/models/{model_id}/adapter/{name}", summary="One file of the adapter")
    def get_adapter_file(model_id: ModelId, name: FileName) -> StreamingResponse:
        return _download(stored, stored.adapter_prefix(model_id), name)

    @router.get("/v1/models/{model_id}/merged", summary="Files of the merged model: safetensors, tokenizer, template")
    def list_merged(model_id: ModelId) -> list[ModelFile]:
        return stored.files(stored.merged_prefix(model_id))

    @router.get("/v1/models/{model_id}/merged/{name}", summary="One file of the merged model")
    def get_merged_file(model_id: ModelId, name: FileName) -> StreamingResponse:
        return _download(stored, stored.merged_prefix(model_id), name)

    @router.get("/v1/models/{model_id}/exports", summary="The model's exports in other formats")
    def list_exports(model_id: ModelId) -> list[ExportManifest]:
        return stored.exports(model_id)

    @router.get("/v1/models/{model_id}/exports/{export_id}/{name}", summary="One file of an export")
    def get_export_file(model_id: ModelId, export_id: ExportId, name: FileName) -> StreamingResponse:
        return _download(stored, stored.export_prefix(model_id, export_id), name)

    return router


def _download(stored: StoredFiles, prefix: str, name: str) -> StreamingResponse:
    size_bytes, parts = stored.stream(prefix, name)
    headers = {"Content-Length": str(size_bytes), "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(parts, media_type="application/octet-stream", headers=headers)
