"""Who asks: from a request's headers to a ``Caller``, without touching the store.

Keys are known by their SHA-256. A slow hash would gain nothing: it makes guessing costly where secrets can be guessed,
and a random key of 256 bits can't be (NIST SP 800-63B, 5.1.2.2: from 112 bits of entropy on an approved hash will do).
Knows nothing of where keys come from; ``keystore`` replaces them as they change.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from textmill.contracts.keys import ApiKey, KeyLimits, KeyScope
from textmill_inference.gateway.openai_errors import OpenAIError

NO_LIMITS = KeyLimits()


@dataclass(frozen=True)
class Scopes:
    """``models`` are exact names, ``beginnings`` those that a pattern with ``*`` lets through."""

    scopes: frozenset[KeyScope] = frozenset({"inference"})
    models: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ("",)

    @classmethod
    def of(cls, scopes: frozenset[KeyScope], patterns: Iterable[str]) -> "Scopes":
        given = tuple(patterns)
        exact = frozenset(pattern for pattern in given if not pattern.endswith("*"))
        return cls(scopes, exact, tuple(pattern[:-1] for pattern in given if pattern.endswith("*")))


@dataclass(frozen=True)
class Caller:
    """Who a request counts for. ``group`` is the metrics' label; ``weight`` the share of a busy model."""

    key_id: str
    name: str
    group: str
    scopes: Scopes = Scopes()
    limits: KeyLimits = NO_LIMITS
    weight: float = 1.0

    def may_use(self, model: str) -> bool:
        """Whether the key's scope has the model in it: what ``/v1/models`` shows, and what may be asked."""
        return model in self.scopes.models or model.startswith(self.scopes.beginnings)

    def check_model(self, model: str) -> None:
        """Raises ``OpenAIError`` (403)."""
        if not self.may_use(model):
            raise OpenAIError(
                403, f"this API key may not use the model {model!r}", param="model", code="model_not_allowed"
            )


OPEN = Caller("open", "anyone", "open")
"""Whoever comes without a known key where none is wanted."""


@dataclass(frozen=True)
class _Entry:
    caller: Caller
    expires_at: float = math.inf


@dataclass
class KeyRing:
    """All keys that are good now, by digest.

    Args:
        static: SHA-256 hex digests of keys that never change, from the settings; without limits.
        required: False lets everybody in, which is for one machine only. None: required if there is a static key.
        clock: Unix time.
    """

    static: Iterable[str] = ()
    required: bool | None = None
    clock: Callable[[], float] = time.time
    loaded: bool = True
    """False while nobody knows yet which keys there are."""
    _entries: Mapping[bytes, _Entry] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._static = {bytes.fromhex(digest): _Entry(_static_caller(digest)) for digest in self.static}
        self._entries = self._static
        if self.required is None:
            self.required = bool(self._static)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """These are the store's keys from now on, for any thread: the change is one assignment."""
        self._entries = {bytes.fromhex(key.sha256): _entry_of(key) for key in keys} | self._static

    def identify(self, headers: Iterable[tuple[bytes, bytes]], scope: KeyScope = "inference") -> Caller:
        """Who sent these headers. Costs a SHA-256 and a look into a dict.

        Looking a digest up leaks no timing that tells of the key: who can choose digests can break SHA-256.

        Raises:
            OpenAIError: 401 for a missing, unknown, revoked or expired key; 403 for one without the scope; 503 while
                the keys were not read yet.
        """
        if not self.required and not self._entries:
            return OPEN
        key = _bearer(headers)
        entry = self._entries.get(hashlib.sha256(key).digest()) if key else None
        if entry is None or entry.expires_at <= self.clock():
            if not self.required:
                return OPEN
            raise _unknown(key, entry) if self.loaded else _not_loaded()
        caller = entry.caller
        self._used.add(caller.key_id)
        if scope not in caller.scopes.scopes:
            raise OpenAIError(403, f"this API key is not for {scope}: its scopes don't name it", code="scope_missing")
        return caller

    def may_control(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether these headers carry a key for the control API."""
        entry = self._entries.get(hashlib.sha256(_bearer(headers)).digest())
        if entry is None or entry.expires_at <= self.clock() or "admin" not in entry.caller.scopes.scopes:
            return False
        self._used.add(entry.caller.key_id)
        return True

    def take_used(self) -> set[str]:
        """Ids of the keys that were used since the last call."""
        used, self._used = self._used, set()
        return used


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key in ``Authorization: Bearer KEY`` (RFC 6750), empty if there is none."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
    return b""


def _unknown(key: bytes, entry: _Entry | None) -> OpenAIError:
    if not key:
        return OpenAIError(401, "send your API key as 'Authorization: Bearer KEY'", code="missing_api_key")
    if entry is not None:
        return OpenAIError(401, "this API key has expired; ask for a new one", code="expired_api_key")
    return OpenAIError(401, "this API key is not known here, or was revoked", code="invalid_api_key")


def _not_loaded() -> OpenAIError:
    message = "the keys couldn't be read from the object store yet; try again soon"
    return OpenAIError(503, message, kind="server_error", code="keys_unavailable", retry_after_s=2)


def _static_caller(digest: str) -> Caller:
    return Caller(f"static-{digest[:12]}", "from the settings", "static")


def _entry_of(key: ApiKey) -> _Entry:
    scopes = Scopes.of(key.scopes, key.models)
    caller = Caller(key.key_id, key.name, key.group, scopes, key.limits, key.weight)
    return _Entry(caller, key.expires_at.timestamp() if key.expires_at is not None else math.inf)
