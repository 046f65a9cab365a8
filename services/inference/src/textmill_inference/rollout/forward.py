"""Two inference services, one behind the other: the gateway passes on what is about deployments, which it hasn't got.

The service behind answers, with its own token check; the gateway only carries. Knows no deployment.
"""

import asyncio
from collections.abc import Mapping

import urllib3
from fastapi import APIRouter, Request, Response

from textmill.errors import DependencyDown

_SENT = ("authorization", "content-type", "idempotency-key", "x-request-id", "traceparent")
_RETURNED = ("content-type", "location", "retry-after", "www-authenticate")
_METHODS = ["GET", "POST", "PATCH", "DELETE"]


def forwarding_router(url: str, timeout_s: float = 120.0) -> APIRouter:
    """``/v1/deployments`` and all below it, answered by the service at ``url``. Include it before one's own."""
    pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=timeout_s), maxsize=8)

    def send(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        try:
            answer = pool.request(method, url.rstrip("/") + path, body=body, headers=headers, redirect=False)
        except urllib3.exceptions.HTTPError as exc:
            raise DependencyDown(f"the service that deploys models, at {url}, can't be reached: {exc}") from exc
        kept = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return Response(answer.data, status_code=answer.status, headers=kept)

    async def forward(request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: request.headers[name] for name in _SENT if name in request.headers}
        return await asyncio.to_thread(send, request.method, path, headers, await request.body())

    router = APIRouter()
    for path in ("/v1/deployments", "/v1/deployments/{rest:path}"):
        router.add_api_route(path, forward, methods=_METHODS, include_in_schema=False)
    return router


def engine_router() -> APIRouter:
    """``/health`` as vLLM has it, so that a gateway in front looks at this service as at any engine."""
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="Alive, for a gateway in front")
    async def health() -> Response:
        return Response()

    return router
