"""Where keys are kept: as SHA-256 hashes in the object store. All calls block; the hot path makes none of them.

::

    keys/active/<id>.json    written once, never changed
    keys/revoked/<id>.json   the same with the time of its end
    keys/used/<id>           when it was last used, to ten minutes
    keys/version             another value after each change, so that gateways need not list what they know

Revoking writes the end before it deletes the beginning: a crash in between leaves a key that works and can be revoked
again, never one that is lost from both lists.
"""

import base64
import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from heapq import merge

from textmill.contracts.base import new_id, utc_now
from textmill.contracts.keys import ApiKey, CreatedKey, KeyView, NewKey
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore

_ACTIVE, _REVOKED, _USED, _VERSION = "keys/active/", "keys/revoked/", "keys/used/", "keys/version"
_KEY_BYTES = 32
_HINT_CHARACTERS = 8


def new_secret() -> str:
    """256 random bits, with a beginning by which people and scanners of sources know what it is."""
    return "tm-" + base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).rstrip(b"=").decode()


def sha256_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class KeyStore:
    """Raises ``DependencyDown`` when the store can't be reached, from every method."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, wanted: NewKey) -> CreatedKey:
        """Make a key. Its secret is in the answer and nowhere else. Raises ``BadRequest`` if it is born expired."""
        if wanted.expires_at is not None and wanted.expires_at <= utc_now():
            raise BadRequest(f"expires_at is {wanted.expires_at.isoformat()}, which is past: give a time to come")
        secret = new_secret()
        key = ApiKey(**dict(wanted), key_id=new_id("key"), sha256=sha256_of(secret), hint=secret[:_HINT_CHARACTERS])
        self._store.create(f"{_ACTIVE}{key.key_id}.json", key.to_json())
        self._bump()
        return CreatedKey(key=secret, view=_view(key, None))

    def revoke(self, key_id: str) -> KeyView:
        """End a key; gateways see it within seconds. A second call changes nothing. Raises ``NotFound``."""
        key = self.find(key_id)
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": utc_now()})
            self._store.create(f"{_REVOKED}{key_id}.json", key.to_json())
            self._store.delete(f"{_ACTIVE}{key_id}.json")
        self._bump()
        return self.view(key)

    def find(self, key_id: str) -> ApiKey:
        """One key, active or revoked. Raises ``NotFound``."""
        for folder in (_ACTIVE, _REVOKED):
            with contextlib.suppress(NotFound):
                return ApiKey.model_validate_json(self._store.get(f"{folder}{key_id}.json"))
        raise NotFound(f"no key {key_id!r}; GET /v1/keys lists them")

    def view(self, key: ApiKey) -> KeyView:
        """What may be shown of it."""
        return _view(key, self._last_used(key.key_id))

    def ids(self, *, revoked: bool, after: str = "") -> Iterator[str]:
        """Ids of active keys, and of revoked ones if asked for, oldest first."""
        folders = (_ACTIVE, _REVOKED) if revoked else (_ACTIVE,)
        last = ""
        for key_id in merge(*(self._ids(folder, after) for folder in folders)):
            if key_id != last:
                yield key_id
            last = key_id

    def active(self, key_id: str) -> ApiKey:
        """Raises ``NotFound`` for one that was revoked meanwhile."""
        return ApiKey.model_validate_json(self._store.get(f"{_ACTIVE}{key_id}.json"))

    def version(self) -> bytes:
        """Another one after each change. Empty where there never was a key."""
        try:
            return self._store.get(_VERSION)
        except NotFound:
            return b""

    def mark_used(self, key_id: str, at: datetime) -> None:
        self._store.put(f"{_USED}{key_id}", at.isoformat(timespec="seconds").encode())

    def _bump(self) -> None:
        self._store.put(_VERSION, new_id("ver").encode())

    def _ids(self, folder: str, after: str) -> Iterator[str]:
        for info in self._store.list(folder, after=f"{folder}{after}.json" if after else ""):
            yield info.key.removeprefix(folder).removesuffix(".json")

    def _last_used(self, key_id: str) -> datetime | None:
        try:
            return datetime.fromisoformat(self._store.get(f"{_USED}{key_id}").decode()).astimezone(UTC)
        except NotFound:
            return None


def _view(key: ApiKey, last_used_at: datetime | None) -> KeyView:
    shown = {name: value for name, value in key if name in KeyView.model_fields}
    return KeyView(**shown, last_used_at=last_used_at)
