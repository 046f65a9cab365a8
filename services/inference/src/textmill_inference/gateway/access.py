"""Puts together who may ask and how much at once, from the settings and the store."""

from dataclasses import dataclass

from fastapi import APIRouter

from textmill.store import ObjectStore
from textmill_inference.gateway.admission import Admission, Room
from textmill_inference.gateway.engine_watch import Engines, EngineWatch
from textmill_inference.gateway.key_watch import KeyWatch
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.keys_api import build_keys_router
from textmill_inference.gateway.keystore import KeyStore, sha256_of
from textmill_inference.gateway.upkeep import Upkeep
from textmill_inference.gateway.usage_exchange import UsageExchange
from textmill_inference.settings import AccessSettings, InferenceSettings


@dataclass(frozen=True)
class Access:
    """``router`` belongs in the control app: it keeps the other two up to date as long as the app runs."""

    keys: KeyRing
    admission: Admission
    router: APIRouter


def open_access(
    inference: InferenceSettings,
    settings: AccessSettings,
    store: ObjectStore,
    own_key: str,
    engines: Engines | None = None,
) -> Access:
    """``own_key`` is this process's own, for evaluations and load tests; it has no limits. With ``engines`` the number
    of requests under way follows what they can run.
    """
    ring = KeyRing({*settings.api_keys, sha256_of(own_key)}, required=settings.keys_required(inference.host))
    admission = Admission(Room(settings.max_in_flight, settings.queue_size, settings.queue_timeout_s))
    keys = KeyStore(store)
    watch = EngineWatch(admission, engines) if engines is not None else None
    upkeep = Upkeep(KeyWatch(keys, ring), UsageExchange(store, admission), admission, watch, settings.keys_poll_s)
    guarded = bool(inference.token.get_secret_value()) or not ring.required
    return Access(ring, admission, build_keys_router(keys, admission, guarded=guarded, upkeep=upkeep))
