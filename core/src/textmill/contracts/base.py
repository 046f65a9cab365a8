"""The base of everything that is stored or sent: frozen, strict about unknown fields, versioned.

Knows nothing of stores, queues or HTTP.
"""

import hashlib
import os
import threading
import time
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1
Id = Annotated[str, Field(pattern=r"^[a-z]{2,4}_[0-9a-f]{32}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Contract(BaseModel):
    """A stored or sent value. Frozen; unknown fields are refused, so that a typo never passes as a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64")

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()


class StoredContract(Contract):
    """A contract that is written to the store, and so outlives the code that wrote it."""

    schema_version: Literal[1] = SCHEMA_VERSION


_last_tick = 0
_tick_lock = threading.Lock()


def _next_tick() -> int:
    """Unix time in 1/4096 ms, strictly growing within this process."""
    global _last_tick
    with _tick_lock:
        _last_tick = max(_last_tick + 1, (time.time_ns() << 12) // 1_000_000)
        return _last_tick


def new_id(prefix: str) -> str:
    """A UUIDv7 (RFC 9562, 6.2 method 3) in hex behind a kind prefix: sorts by creation time, e.g. ``doc_0193...``."""
    tick = _next_tick()
    random = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | random
    return f"{prefix}_{value:032x}"


def content_id(prefix: str, *parts: str) -> str:
    """An id that depends on content alone: the same parts give the same id. 128 bits of SHA-256."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
    return f"{prefix}_{digest[:32]}"


def utc_now() -> datetime:
    return datetime.now(UTC)
