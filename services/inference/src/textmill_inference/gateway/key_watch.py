"""Keeps a gateway's knowledge of keys fresh: polls the store, writes down which keys were used. One task of the loop.

A gateway that can't reach the store goes on with the keys it knows; the gauge of their age tells. One that has never
reached it refuses with 503 rather than 401, for it can't know.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import Gauge
from pydantic import ValidationError

from textmill.contracts.base import utc_now
from textmill.contracts.keys import ApiKey
from textmill.errors import DependencyDown, NotFound
from textmill_inference.gateway.keys import NO_LIMITS, KeyRing
from textmill_inference.gateway.keystore import KeyStore

log = logging.getLogger(__name__)
KEYS_AGE = Gauge("textmill_gateway_keys_age_seconds", "Since the keys were last compared with the store")
_FULL_EVERY_S = 60.0
"""Also without a new version: that of a change may have failed to be written."""
_USED_EVERY_S = 600.0


@dataclass
class KeyWatch:
    """``tick`` is one look. ``clock`` is for intervals only."""

    store: KeyStore
    ring: KeyRing
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, ApiKey] = field(default_factory=dict)
    _version: bytes | None = None
    _listed_at: float = 0.0
    _compared_at: float = 0.0
    _told_used_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ring.loaded = False
        self._compared_at = self.clock()

    @property
    def limited(self) -> bool:
        """Whether any key has a quota."""
        return any(key.limits != NO_LIMITS for key in self._known.values())

    async def tick(self) -> None:
        """Compare with the store, and tell it what was used. Never raises for a store that is down."""
        try:
            if await asyncio.to_thread(self._changed):
                self.ring.replace(self._known.values())
            self.ring.loaded = True
            self._compared_at = self.clock()
            await asyncio.to_thread(self._tell_used, sorted(self.ring.take_used()))
        except DependencyDown as exc:
            log.warning("keys can't be compared with the store", extra={"error": str(exc)})
        KEYS_AGE.set(self.clock() - self._compared_at)

    def _changed(self) -> bool:
        """Whether ``_known`` is other than before. The version is read first: what comes after it is seen next time."""
        now, version = self.clock(), self.store.version()
        if version == self._version and now - self._listed_at < _FULL_EVERY_S:
            return False
        found = list(self.store.ids(revoked=False))
        known = {key_id: key for key_id in found if (key := self._known.get(key_id) or self._read(key_id)) is not None}
        changed = self._version is None or known.keys() != self._known.keys()
        self._known, self._version, self._listed_at = known, version, now
        return changed

    def _read(self, key_id: str) -> ApiKey | None:
        try:
            return self.store.active(key_id)
        except NotFound:
            return None
        except ValidationError as exc:
            log.error("a stored key can't be read and is not let in", extra={"key_id": key_id, "error": exc.title})
            return None

    def _tell_used(self, key_ids: Sequence[str]) -> None:
        now = self.clock()
        for key_id in key_ids:
            last = self._told_used_at.get(key_id)
            if key_id in self._known and (last is None or now - last >= _USED_EVERY_S):
                self.store.mark_used(key_id, utc_now())
                self._told_used_at[key_id] = now
