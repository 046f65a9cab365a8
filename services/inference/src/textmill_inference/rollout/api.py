"""The control routes of deployments: new versions, canaries, shadows, rollback, and how they do."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from textmill.contracts.base import Contract, Id
from textmill.contracts.jobs import DeployJob, JobView
from textmill.contracts.serving import Deployment
from textmill.errors import NotFound
from textmill.http import Page, submission_router
from textmill.jobs import Jobs
from textmill_inference.rollout.deployments import Deployments, Role
from textmill_inference.rollout.table import Live


class ServedVersion(BaseModel):
    """An engine or adapter behind a name. ``role`` is stable, canary, shadow, or leaving: it finishes its answers.

    ``requests`` and ``errors`` are the gateway's counts since the engine took over the role or the service started.
    """

    role: str
    model_id: str | None
    adapter: bool
    ready: bool
    trouble: str
    in_flight: int
    requests: int
    errors: int


class ServedModel(BaseModel):
    """A name that the gateway answers for. ``deployment`` is None for the base model and attached engines."""

    name: str
    ready: bool
    trouble: str = ""
    deployment: Deployment | None = None
    versions: list[ServedVersion] = []


class Adjust(Contract):
    """Another share for the canary or the shadow."""

    canary_percent: float | None = Field(default=None, ge=0, le=100)
    shadow_percent: float | None = Field(default=None, ge=0, le=100)

    @model_validator(mode="after")
    def _something(self) -> "Adjust":
        if self.canary_percent is None and self.shadow_percent is None:
            raise ValueError("give canary_percent or shadow_percent")
        return self


class Which(Contract):
    """The deployment that is meant: to promote, or to go back from. Left out, it is the one there is."""

    deployment_id: Id | None = None


def deployment_router(deployments: Deployments, jobs: Jobs) -> APIRouter:
    router = APIRouter(tags=["deployments"])
    router.include_router(submission_router("/v1/deployments", DeployJob, jobs, deployments.check_job))
    router.include_router(_reading_routes(deployments))
    router.include_router(_changing_routes(deployments, jobs))
    return router


def _reading_routes(deployments: Deployments) -> APIRouter:
    router = APIRouter(prefix="/v1/deployments")

    @router.get("", summary="All served names")
    def list_deployments() -> Page:
        stored = {state.name: state for state in deployments.records.all()}
        names = sorted({*stored, *deployments.routes()})
        return Page(items=[_view(deployments, name, stored.get(name)) for name in names])

    @router.get("/{name}", summary="One served name, its versions and what was counted of them")
    def get_deployment(name: str) -> ServedModel:
        state = deployments.records.find(name)
        if state is None and name not in deployments.routes():
            raise NotFound(f"no deployment {name!r}; GET /v1/deployments lists them")
        return _view(deployments, name, state)

    return router


def _changing_routes(deployments: Deployments, jobs: Jobs) -> APIRouter:
    router = APIRouter(prefix="/v1/deployments/{name}")

    @router.patch("", summary="Give the canary or the shadow another share")
    def adjust(name: str, body: Adjust) -> ServedModel:
        if body.canary_percent is not None:
            state = deployments.adjust(name, "canary", body.canary_percent)
        if body.shadow_percent is not None:
            state = deployments.adjust(name, "shadow", body.shadow_percent)
        return _view(deployments, name, state)

    @router.post("/promote", summary="Let the canary answer all requests")
    def promote(name: str, body: Which | None = None) -> ServedModel:
        return _view(deployments, name, deployments.promote(name, body.deployment_id if body else None))

    @router.post("/abort", summary="End the canary or the shadow; nothing happens if there is none")
    def abort(name: str, role: Annotated[Role | None, Query()] = None) -> ServedModel:
        return _view(deployments, name, deployments.abort(name, role))

    @router.post(
        "/rollback",
        summary="Bring the version before back, as a job; 200 and the state if deployment_id answers no more",
        status_code=202,
        response_model=JobView | ServedModel,
    )
    def rollback(
        name: str,
        body: Which | None = None,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> Response:
        job = deployments.rollback(name, body.deployment_id if body else None)
        if job is None:
            view = _view(deployments, name, deployments.records.get(name))
            return Response(view.model_dump_json(), 200, media_type="application/json")
        # One rollback from one deployment: asking twice is asking once, with a key of the client's or without.
        stored = jobs.submit(job, idempotency_key or f"rollback-{job.rollback_from}", str(job.rollback_from))
        found = jobs.view("deploy", stored.job_id)
        if found.result is not None and found.result.state != "succeeded":
            found = jobs.replay("deploy", stored.job_id)
        headers = {"Location": f"/v1/jobs/{stored.job_id}"}
        return Response(found.model_dump_json(), 202, headers, "application/json")

    @router.delete("", summary="Answer to this name no more; answers under way end", status_code=204)
    def undeploy(name: str) -> None:
        deployments.undeploy(name)

    return router


def _view(deployments: Deployments, name: str, state: Deployment | None) -> ServedModel:
    served = deployments.table.named(name)
    versions = [_version(role, live) for role, live in served.versions()]
    versions += [_version("leaving", live) for live in deployments.table.leaving(name)]
    stable = [live.upstream for live in served.stable]
    ready = any(upstream.ready for upstream in stable)
    trouble = stable[0].trouble if stable else "waits for its turn to start"
    return ServedModel(
        name=name,
        ready=ready,
        trouble="" if ready else trouble,
        deployment=deployments.counted(served, state) if state is not None else None,
        versions=versions,
    )


def _version(role: str, live: Live) -> ServedVersion:
    counts = live.upstream.tally.counts
    return ServedVersion(
        role=role,
        model_id=live.version.model_id if live.version is not None else None,
        adapter=live.is_adapter,
        ready=live.upstream.ready,
        trouble=live.upstream.trouble,
        in_flight=live.upstream.in_flight,
        requests=counts.requests,
        errors=counts.errors,
    )
