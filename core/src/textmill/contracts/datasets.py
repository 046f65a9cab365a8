"""What synth writes: training records, the rejected ones with the reason, and the manifest that counts them all."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.documents import Language, Span

Split = Literal["train", "eval", "heldout"]
"""``train`` and ``eval`` share no document. ``heldout`` asks for facts of ``train`` in wordings never trained on."""
Strategy = Literal["qa", "summary", "passage"]
Role = Literal["system", "user", "assistant", "tool"]


class Message(Contract):
    role: Role
    content: str


class Cost(Contract):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Record(StoredContract):
    """One training example and its whole history.

    ``key_facts`` are the strings that a right answer to the last user message must contain. ``evidence`` is quoted
    from the passage word for word, ``evidence_span`` is where it stands in the original document.
    """

    record_id: str
    split: Split
    strategy: Strategy
    language: Language
    messages: Sequence[Message]
    key_facts: Sequence[str]
    question_id: str
    way: str
    document_id: str
    document_sha256: str
    passage_id: str
    evidence: str
    evidence_span: Span
    prompt_version: str | None = None
    model: str | None = None
    call_id: str | None = None
    cost: Cost = Cost()

    @property
    def question(self) -> str:
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    @property
    def answer(self) -> str:
        return next(m.content for m in reversed(self.messages) if m.role == "assistant")


class Reject(StoredContract):
    """A record that was asked for and not accepted: why, and what the model had really said."""

    passage_id: str
    question_id: str
    strategy: Strategy
    reason: str
    detail: str
    raw_response: str
    prompt_version: str | None = None
    model: str | None = None
    call_id: str | None = None


class Counts(Contract):
    """Conservation: every record that was asked for is accepted, rejected or dead-lettered, and never two of these."""

    requested: int = 0
    accepted: int = 0
    rejected: int = 0
    dead_lettered: int = 0
    rejected_by_reason: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _conserved(self) -> "Counts":
        settled = self.accepted + self.rejected + self.dead_lettered
        if self.requested != settled:
            raise ValueError(f"requested {self.requested} records but settled {settled}: rows were lost or invented")
        if sum(self.rejected_by_reason.values()) != self.rejected:
            raise ValueError(f"rejected {self.rejected} but the reasons add up to {self.rejected_by_reason}")
        return self


class DatasetManifest(StoredContract):
    """A dataset version. ``counts`` are of answers asked for; ``records`` counts the rows after augmentation."""

    dataset_id: str
    corpus_id: str
    records: dict[Split, int]
    counts: Counts
    counts_by_strategy: dict[Strategy, Counts]
    cost: Cost
    calls: int
    calls_reused: int
    records_keys: dict[Split, str]
    rejects_key: str
    card_key: str
    exports: dict[str, str]
    document_ids: Sequence[str]
    prompt_versions: Sequence[str]
    models: Sequence[str]
    created_at: datetime = Field(default_factory=utc_now)
