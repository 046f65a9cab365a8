"""API keys: what the store keeps of one, what its owner is shown, what it may do. The key itself is in none of them,
save in the one answer that hands it over.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from textmill.contracts.base import Contract, Id, Name, StoredContract, utc_now

KeyScope = Literal["inference", "admin"]
Quota = Literal["requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ModelPattern = Annotated[str, StringConstraints(pattern=r"^[^\s*]{0,200}\*?$", min_length=1)]
Limit = Annotated[int, Field(ge=1)]


class KeyLimits(Contract):
    """Quotas of one key, None for no limit.

    Tokens are prompt and completion together. ``concurrent`` counts requests that wait as well as those being answered.
    A minute and a day are sliding windows of 60 s and 24 h, not those of the clock.
    """

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    concurrent: Limit | None = None


class NewKey(Contract):
    """Create an API key.

    ``group`` is the label that metrics carry: a team or an application, never a person. ``models`` are names, or
    beginnings of names with ``*`` after them. ``scopes``: ``inference`` for OpenAI's routes, ``admin`` for the control
    API. ``weight`` is the key's share of a busy model: 2 gets twice the tokens of 1.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    group: Name = "default"
    scopes: frozenset[KeyScope] = frozenset({"inference"})
    models: Sequence[ModelPattern] = ("*",)
    limits: KeyLimits = KeyLimits()
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    expires_at: AwareDatetime | None = None


class ApiKey(NewKey, StoredContract):
    """A key as it is stored: its SHA-256 in its place. Never changed after it is written; revoking moves it."""

    key_id: Id
    sha256: Sha256
    hint: str
    created_at: datetime = Field(default_factory=utc_now)
    revoked_at: datetime | None = None


class KeyView(NewKey):
    """A key as it is shown: ``hint`` is its first characters, ``last_used_at`` is true to ten minutes."""

    key_id: Id
    hint: str
    created_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class CreatedKey(Contract):
    """The only answer that holds the key."""

    key: str
    view: KeyView


class QuotaUse(Contract):
    """What is counted and reserved of a quota now."""

    quota: Quota
    used: int
    allowed: int


class MeterUse(Contract):
    """What one gateway has counted of one quota: numbered slots of its window, and what requests under way hold."""

    slots: Sequence[tuple[int, int]] = ()
    reserved: int = 0


class KeyUse(Contract):
    """What one gateway knows of one key's use."""

    meters: dict[Quota, MeterUse]


class GatewayUse(StoredContract):
    """What one gateway tells the others, by key id. ``told_at`` is Unix time."""

    gateway_id: str
    told_at: float
    keys: dict[str, KeyUse]
