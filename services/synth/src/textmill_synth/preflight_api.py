"""HTTP routes for preflights. Plain ``def``: the store blocks, so they run on threads."""

from typing import Annotated

from fastapi import APIRouter, Path

from textmill.contracts.jobs import PreflightJob
from textmill.contracts.preflight import PreflightManifest
from textmill.http import submission_router
from textmill.jobs import Jobs
from textmill.store import ObjectStore
from textmill_synth.known import load_known, stored_preflight
from textmill_synth.topics import validate_question_sets

PreflightId = Annotated[str, Path(pattern=r"^pre_[0-9a-f]{32}$")]


def preflights_router(store: ObjectStore, jobs: Jobs) -> APIRouter:
    """``POST /v1/preflights`` and its result. What can't work is refused at submission."""
    router = APIRouter(tags=["preflights"])

    def check(job: PreflightJob) -> None:
        validate_question_sets(job.question_sets)
        load_known(store, job.leave_out_known)

    router.include_router(submission_router("/v1/preflights", PreflightJob, jobs, check))

    @router.get("/v1/preflights/{preflight_id}", summary="Forecast, yield, and what the base model knows already")
    def get_preflight(preflight_id: PreflightId) -> PreflightManifest:
        return stored_preflight(store, preflight_id)

    return router
