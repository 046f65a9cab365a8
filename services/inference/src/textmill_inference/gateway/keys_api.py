"""The control routes for keys: create, list, look at, revoke. A key is shown once, in the answer that made it."""

import contextlib
from collections.abc import AsyncIterator
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Response
from pydantic import ValidationError

from textmill.contracts.base import Id
from textmill.contracts.keys import CreatedKey, KeyView, NewKey, QuotaUse
from textmill.errors import NotFound, Unauthorized
from textmill.http import Page
from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.keystore import KeyStore
from textmill_inference.gateway.upkeep import Upkeep

Limit = Annotated[int, Query(ge=1, le=500)]


def build_keys_router(
    keys: KeyStore, admission: Admission, *, guarded: bool = True, upkeep: Upkeep | None = None
) -> APIRouter:
    """``guarded`` False refuses all: it is for a service that asks for keys while its control API is open to anybody,
    who could then make themselves one. ``upkeep`` runs as long as the app that includes the router.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if upkeep is None:
            yield
            return
        async with upkeep.running():
            yield

    router = APIRouter(prefix="/v1/keys", tags=["keys"], lifespan=lifespan)

    def check_guarded() -> None:
        if not guarded:
            raise Unauthorized(
                "the control API is open to anybody, so it gives out no keys: set TEXTMILL_INFERENCE_TOKEN, "
                "and send it as 'Authorization: Bearer TOKEN'"
            )

    @router.post("", status_code=201, summary=NewKey.__doc__)
    def create_key(wanted: NewKey, response: Response) -> CreatedKey:
        check_guarded()
        response.headers["Cache-Control"] = "no-store"
        return keys.create(wanted)

    @router.get("", summary="Keys, oldest first, without their secrets")
    def list_keys(revoked: bool = False, after: Id | None = None, limit: Limit = 100) -> Page:
        check_guarded()
        found = list(islice(keys.ids(revoked=revoked, after=after or ""), limit + 1))
        page = Page(items=[], next_after=found[limit - 1] if len(found) > limit else None)
        for key_id in found[:limit]:
            try:
                page.items.append(keys.view(keys.find(key_id)))
            except (ValidationError, NotFound) as exc:
                page.unreadable.append(f"{key_id}: {type(exc).__name__}")
        return page

    @router.get("/{key_id}", summary="One key")
    def get_key(key_id: Id) -> KeyView:
        check_guarded()
        return keys.view(keys.find(key_id))

    @router.get("/{key_id}/usage", summary="How much of its quotas a key has used, at all gateways together")
    async def get_usage(key_id: Id) -> list[QuotaUse]:
        check_guarded()
        account = admission.accounts.get(key_id)
        return [] if account is None else list(account.uses())

    @router.delete("/{key_id}", summary="Revoke a key; gateways refuse it within seconds")
    def revoke_key(key_id: Id) -> KeyView:
        check_guarded()
        return keys.revoke(key_id)

    return router
