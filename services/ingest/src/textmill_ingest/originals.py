"""The original bytes, kept once under their hash for all the documents that have them.

A marker ``owners/<sha256>/<document_id>`` stands for each document. Deleting races with uploading: a deleter first
puts up a ``deleting/`` sign and then looks for owners; an uploader first puts its owner marker and then looks for
signs. So one of the two always sees the other, and no document is left without its bytes.
"""

import time
from datetime import UTC, datetime, timedelta

from textmill.contracts.base import new_id, utc_now
from textmill.errors import Transient
from textmill.store import ObjectStore

_SIGN_LIFE = timedelta(seconds=60)
"""A sign older than this was left by a crash."""
_PATIENCE_S = 3.0
_UPLOAD_LIFE = timedelta(days=1)


def raw_key(sha256: str) -> str:
    return f"raw/{sha256}"


def adopt(store: ObjectStore, sha256: str, document_id: str, upload_key: str) -> None:
    """Make sure that the bytes lie under their hash and stay there for this document."""
    store.put(_owner_key(sha256, document_id), b"")
    _wait_for_deleters(store, sha256)
    if not store.exists(raw_key(sha256)):
        store.copy(upload_key, raw_key(sha256))


def release(store: ObjectStore, sha256: str, document_id: str) -> bool:
    """The document needs the bytes no more. True if nobody did and they are gone."""
    sign = f"deleting/{sha256}/{new_id('del')}"
    store.put(sign, utc_now().isoformat().encode())
    try:
        store.delete(_owner_key(sha256, document_id))
        if any(True for _ in store.list(f"owners/{sha256}/")):
            return False
        store.delete(raw_key(sha256))
        return True
    finally:
        store.delete(sign)


def sweep_uploads(store: ObjectStore) -> int:
    """Delete uploads that a crash left behind more than a day ago. Returns how many."""
    oldest = utc_now() - _UPLOAD_LIFE
    stale = [item.key for item in store.list("uploads/") if _created(item.key) < oldest]
    for key in stale:
        store.delete(key)
    return len(stale)


def _owner_key(sha256: str, document_id: str) -> str:
    return f"owners/{sha256}/{document_id}"


def _wait_for_deleters(store: ObjectStore, sha256: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while any(_created(item.key) > utc_now() - _SIGN_LIFE for item in store.list(f"deleting/{sha256}/")):
        if time.monotonic() > deadline:
            raise Transient("the same bytes are being deleted right now; send them again", retry_after_s=5)
        time.sleep(0.05)


def _created(key: str) -> datetime:
    """When the UUIDv7 at the key's end was made; the beginning of time for any other key."""
    try:
        milliseconds = int(key.rpartition("_")[2][:12], 16)
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
