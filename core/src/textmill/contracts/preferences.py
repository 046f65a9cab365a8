"""Preference pairs: of two answers to the same prompt, the one that is wanted. What DPO learns from."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.datasets import Message


class PreferenceLine(Contract):
    """A line of an upload: ``prompt`` is one user turn, ``messages`` a conversation up to where the answer goes."""

    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] = ()
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)
    document_id: str | None = Field(default=None, pattern=r"^doc_[0-9a-f]{32}$")

    @model_validator(mode="after")
    def _can_be_compared(self) -> "PreferenceLine":
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either 'prompt' or 'messages'")
        if self.messages and self.messages[-1].role == "assistant":
            raise ValueError("'messages' must end before the answer, with a turn of the user or a tool")
        if self.chosen == self.rejected:
            raise ValueError("'chosen' and 'rejected' are the same, so neither is preferred")
        return self


class PreferencePair(StoredContract):
    """``pair_id`` follows from the content: the same pair has the same id in every upload."""

    pair_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    document_id: str | None = None


class PreferencesManifest(StoredContract):
    """Uploaded pairs, in JSON lines at ``pairs_key``. Written last."""

    preferences_id: str
    pairs: int
    pairs_key: str
    sha256: str
    document_ids: Sequence[str]
    created_at: datetime = Field(default_factory=utc_now)


class PreferenceFigures(Contract):
    """``reward_margin`` in nats: beta times how much more the chosen answer gained on the base than the rejected one.

    ``accuracy`` is the share of pairs with a margin above 0. Of ``train``: over the steps since the last evaluation.
    """

    step: int
    split: Literal["train", "eval"]
    reward_margin: float
    accuracy: float


class PreferenceReport(StoredContract):
    figures: Sequence[PreferenceFigures]
