"""The HTTP edge that all services share: health, readiness, metrics, auth, problem details, jobs.

Middleware is pure ASGI: it costs microseconds and never buffers a stream. Knows no service.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, SecretStr
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textmill.census import Census
from textmill.contracts.base import Id, new_id
from textmill.contracts.jobs import BaseJob, JobKind, JobView
from textmill.errors import DependencyDown, JobFailed, NotFound, TextmillError, Unauthorized
from textmill.jobs import Jobs
from textmill.telemetry import HTTP_REQUESTS, HTTP_SECONDS

log = logging.getLogger(__name__)
OPEN_PATHS = (
    "/healthz",
    "/health",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/compare/vote",
    "/compare/results",
)
PROBLEM = "application/problem+json"
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
Check = Callable[[], None]
Headers = Iterable[tuple[bytes, bytes]]


class Page(BaseModel):
    """A list answer. ``next_after`` is the ``after`` of the next page, None at the end.

    ``unreadable`` says, for each thing on the page that can't be shown, which it is and why.
    """

    items: list[Any]
    next_after: str | None = None
    unreadable: list[str] = []


def create_app(
    service: str,
    *,
    jobs: Jobs,
    kinds: Sequence[JobKind],
    checks: Mapping[str, Check],
    token: SecretStr | None = None,
    also: Callable[[Headers], bool] | None = None,
) -> FastAPI:
    """An app with all that services share. ``checks`` raise when the service can't work; they decide /readyz.

    Where a ``token`` guards it, ``also`` may let in requests that carry something else.
    """
    app = FastAPI(title=f"textmill {service}", version="0.1.0", redoc_url=None, separate_input_output_schemas=False)
    _add_problem_handlers(app)
    app.include_router(_health_router(checks, Census(jobs, kinds)))
    app.include_router(_jobs_router(jobs, kinds))
    if token is not None and token.get_secret_value():
        app.add_middleware(BearerAuth, token=token.get_secret_value(), also=also)
    app.add_middleware(RequestTelemetry)
    return app


def submission_router(
    path: str, job_class: type[BaseJob], jobs: Jobs, check: Callable[[Any], None] | None = None
) -> APIRouter:
    """``POST path``: the body is the job. 202 with the job's address; ``check`` may refuse it first."""
    router = APIRouter()

    def submit(job: Any, idempotency_key: str | None, body_sha256: str) -> Response:
        if check is not None:
            check(job)
        stored = jobs.submit(job, idempotency_key, body_sha256)
        view = jobs.view(stored.kind, stored.job_id)
        headers = {"Location": f"/v1/jobs/{stored.job_id}"}
        return Response(view.model_dump_json(), status_code=202, headers=headers, media_type="application/json")

    async def read(
        request: Request,
        job: job_class,  # type: ignore[valid-type]
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> Response:
        body_sha256 = hashlib.sha256(await request.body()).hexdigest()
        return await asyncio.to_thread(submit, job, idempotency_key, body_sha256)

    router.add_api_route(
        path, read, methods=["POST"], status_code=202, response_model=JobView, summary=job_class.__doc__
    )
    return router


def problem(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """An RFC 9457 answer. ``type`` is a URN, so that clients can switch on it."""
    body = {"type": f"urn:textmill:{code}", "title": code.replace("_", " "), "status": status, "detail": detail, **more}
    return Response(json.dumps(body, ensure_ascii=False), status_code=status, headers=headers, media_type=PROBLEM)


def _add_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(TextmillError)
    async def on_own(request: Request, exc: TextmillError) -> Response:
        retry_after_s = exc.retry_after_s if exc.retry_after_s is not None else (2.0 if exc.status == 503 else None)
        headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}
        return problem(exc.status, exc.code, str(exc), headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, exc: RequestValidationError) -> Response:
        errors = [{"where": ".".join(map(str, e["loc"])), "what": e["msg"]} for e in exc.errors()]
        first = errors[0] if errors else {"where": "body", "what": "invalid"}
        return problem(422, "invalid_request", f"{first['where']}: {first['what']}", errors=errors)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, exc: HTTPException) -> Response:
        code = "not_found" if exc.status_code == 404 else "http_error"
        return problem(exc.status_code, code, str(exc.detail), exc.headers)


def _health_router(checks: Mapping[str, Check], census: Census) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Alive: the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Ready: all that the service needs answers")
    def readyz() -> JSONResponse:
        found: dict[str, str] = {}
        for name, check in checks.items():
            try:
                check()
                found[name] = "ok"
            except Exception as exc:
                found[name] = str(exc) or type(exc).__name__
        ready = all(word == "ok" for word in found.values())
        return JSONResponse(
            {"status": "ok" if ready else "not ready", "checks": found}, status_code=200 if ready else 503
        )

    @router.get("/metrics", summary="Prometheus metrics")
    def metrics() -> Response:
        census.refresh()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _jobs_router(jobs: Jobs, kinds: Sequence[JobKind]) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    def find(job_id: str) -> JobView:
        for kind in kinds:
            try:
                return jobs.view(kind, job_id)
            except NotFound:
                continue
        raise NotFound(f"no job {job_id} here; this service has jobs of kind {', '.join(kinds)}")

    @router.get("", summary="Jobs of this service, oldest first")
    def list_jobs(
        kind: JobKind = kinds[0], after: Id | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 100
    ) -> Page:
        if kind not in kinds:
            raise NotFound(f"no {kind} jobs here; this service has {', '.join(kinds)}")
        found = list(islice(jobs.job_ids(kind, after or ""), limit + 1))
        page = Page(items=[], next_after=found[limit - 1] if len(found) > limit else None)
        for job_id in found[:limit]:
            try:
                page.items.append(jobs.view(kind, job_id))
            except JobFailed as exc:
                page.unreadable.append(str(exc))
        return page

    @router.get("/{job_id}", response_model=JobView, summary="One job")
    def get_job(job_id: Id) -> JobView:
        return find(job_id)

    @router.post("/{job_id}/cancel", response_model=JobView, summary="Ask a job to end")
    def cancel_job(job_id: Id) -> JobView:
        return jobs.cancel(find(job_id).job.kind, job_id)

    @router.post("/{job_id}/replay", response_model=JobView, summary="Give a failed job another life")
    def replay_job(job_id: Id) -> JobView:
        return jobs.replay(find(job_id).job.kind, job_id)

    @router.get("/{job_id}/events", summary="The job's states as they change, as server-sent events")
    async def events(job_id: Id) -> StreamingResponse:
        first = await asyncio.to_thread(find, job_id)
        return StreamingResponse(_changes(jobs, first), media_type="text/event-stream")

    return router


async def _changes(jobs: Jobs, view: JobView, every_s: float = 0.5) -> AsyncIterator[bytes]:
    """The view now and at every change, until the job is finished. A comment every 15 s keeps proxies awake."""
    told, quiet_s = "", 0.0
    while True:
        line = view.model_dump_json()
        if line != told:
            told, quiet_s = line, 0.0
            yield f"event: job\ndata: {line}\n\n".encode()
        if view.finished:
            return
        await asyncio.sleep(every_s)
        quiet_s += every_s
        if quiet_s >= 15:
            quiet_s = 0.0
            yield b": still here\n\n"
        try:
            view = await asyncio.to_thread(jobs.view, view.job.kind, view.job.job_id)
        except DependencyDown:
            continue  # the stream outlives a restart of the store


class RequestTelemetry:
    """Gives each request an id (the client's, if it sent one), counts and times it, logs it at debug level.

    Turns what nothing else has handled into a 500, which so carries the id that the log has.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req").encode()
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            log.exception("request failed", extra={"request_id": request_id.decode()})
            if started:
                raise
            detail = "an error of ours; the service's log has it under this request's id"
            await problem(500, "internal_error", detail)(scope, receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            HTTP_REQUESTS.labels(route, scope["method"], str(status)).inc()
            HTTP_SECONDS.labels(route, scope["method"]).observe(time.perf_counter() - began)
            log.debug("request", extra={"request_id": request_id.decode(), "route": route, "status": status})


class BearerAuth:
    """Refuses what doesn't carry the service's token, save health, metrics and docs."""

    def __init__(self, app: ASGIApp, token: str, also: Callable[[Headers], bool] | None = None) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._also = also

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected) or (self._also is not None and self._also(scope["headers"])):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("this service wants 'Authorization: Bearer <token>' with its TEXTMILL_..._TOKEN")
        await problem(error.status, error.code, str(error), {"WWW-Authenticate": "Bearer"})(scope, receive, send)
