"""HTTP routes for preference pairs."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from textmill.contracts.preferences import PreferencesManifest
from textmill.errors import BadRequest
from textmill.store import ObjectStore
from textmill_trainer.preferences import keep_pairs, parse_pairs, read_preferences

PreferencesId = Annotated[str, Path(pattern=r"^prf_[0-9a-f]{32}$")]
_MOST_BYTES = 256 << 20
"""An upload is checked as a whole before any of it is stored, so it is held in memory."""


def preferences_router(store: ObjectStore) -> APIRouter:
    """``POST /v1/preferences`` keeps pairs for a train job with objective ``dpo``."""
    router = APIRouter(tags=["preferences"])

    def keep(body: bytes) -> Response:
        manifest, created = keep_pairs(store, parse_pairs(body))
        return Response(
            manifest.to_json(),
            status_code=201 if created else 200,
            headers={"Location": f"/v1/preferences/{manifest.preferences_id}"},
            media_type="application/json",
        )

    @router.post(
        "/v1/preferences",
        status_code=201,
        response_model=PreferencesManifest,
        summary="Upload preference pairs in JSON lines: prompt or messages, chosen, rejected, perhaps document_id",
    )
    async def upload(request: Request) -> Response:
        body = await _read(request)
        return await asyncio.to_thread(keep, body)

    @router.get("/v1/preferences/{preferences_id}", summary="How many pairs an upload has, and of which documents")
    def get_preferences(preferences_id: PreferencesId) -> PreferencesManifest:
        return read_preferences(store, preferences_id)

    return router


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise BadRequest(f"more than {_MOST_BYTES >> 20} MiB in one upload: send the pairs in several")
    return bytes(body)
