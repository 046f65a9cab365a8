"""What synth writes: training records, the rejected ones with the reason, and the manifest that counts them all."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue, model_validator

from textmill.contracts.base import Contract, StoredContract, utc_now
from textmill.contracts.documents import Language, Span

Split = Literal["train", "eval", "heldout"]
"""``train`` and ``eval`` share no document. ``heldout`` asks for facts of ``train`` in wordings never trained on."""
Strategy = Literal[
    "qa",
    "pairs",
    "bridge",
    "summary",
    "styles",
    "passage",
    "conversation",
    "tools",
    "self_instruct",
    "evolve",
    "prompt",
    "logged",
]
"""``qa`` answers the owner's questions, ``pairs`` has the LLM write its own, ``bridge`` asks across two passages,
``logged`` takes a logged conversation as it is."""
Axis = Literal["plain", "register", "keyword", "typo", "persona", "follow_up", "indirect", "language"]
"""In what respect a wording differs from the plain question."""
Rung = Literal["as_asked", "json_repair", "partial", "asked_again", "split"]
"""How a response became usable: in the form asked for; its JSON mended; the whole items of a truncated list; asked
again with the error; asked of half the passage. What none of these helps is rejected."""
AnswerForm = Literal["json_schema", "json_object", "text"]
"""How the LLM was asked for answers: held to a schema, for any JSON object that fits it, or for plain lines."""
Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Contract):
    """``arguments`` is a JSON object in a string, as in OpenAI's messages."""

    id: str
    name: str
    arguments: str


class Tool(Contract):
    """A function that the model may call. ``parameters`` is its JSON schema in a string."""

    name: str
    description: str
    parameters: str


class Message(Contract):
    role: Role
    content: str
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None

    def openai(self) -> dict[str, JsonValue]:
        """As OpenAI's chat API writes it. A message that only calls tools has no content."""
        row: dict[str, JsonValue] = {"role": self.role}
        if self.content or not self.tool_calls:
            row["content"] = self.content
        if self.tool_calls:
            row["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            row["tool_call_id"] = self.tool_call_id
        return row


class Cost(Contract):
    prompt_tokens: int = 0
    completion_tokens: int = 0


BudgetCap = Literal["max_calls", "max_tokens", "max_cost"]


class BudgetSpent(Contract):
    """What a job spent of its budget, over all its attempts; ``cost`` in the money of its prices.

    ``refused`` calls of this attempt weren't made, since they could have passed the cap ``ended_by``.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    refused: int = 0
    ended_by: BudgetCap | None = None


class Evidence(Contract):
    """A quotation, word for word, and where it stands in its document."""

    document_id: str
    document_sha256: str
    passage_id: str
    text: str
    span: Span


class Record(StoredContract):
    """One training example and its whole history.

    ``key_facts`` are the strings that a right answer to the last user message must contain. ``evidence`` is quoted
    from the passage word for word, ``evidence_span`` is where it stands in the original document; what an answer draws
    on besides is in ``more_evidence``. In a mixture or a frozen set ``source_dataset_id`` and ``source_record_id`` say
    which record of which dataset this one was, ``copy_number`` the how many-eth copy of it this is. ``wording_call_id``
    is the call that wrote the question, where that wasn't the one that wrote the answer.
    """

    record_id: str
    split: Split
    strategy: Strategy
    language: Language
    messages: Sequence[Message]
    key_facts: Sequence[str]
    question_id: str
    way: str
    axis: Axis = "plain"
    tools: Sequence[Tool] = ()
    document_id: str
    document_sha256: str
    passage_id: str
    evidence: str
    evidence_span: Span
    more_evidence: Sequence[Evidence] = ()
    rung: Rung | None = None
    prompt_version: str | None = None
    model: str | None = None
    call_id: str | None = None
    wording_call_id: str | None = None
    cost: Cost = Cost()
    source_dataset_id: str | None = None
    source_record_id: str | None = None
    copy_number: int = 0
    edited_by: str | None = None

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
    rung: Rung | None = None


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


class AxisCoverage(Contract):
    """How many wordings of an axis the asking options wanted, how many there are, and why the others are missing."""

    wanted: int = 0
    filled: int = 0
    missing: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _accounted_for(self) -> "AxisCoverage":
        if self.wanted != self.filled + sum(self.missing.values()):
            raise ValueError(f"{self.wanted} wordings were wanted, but {self.filled} are there, missing {self.missing}")
        return self


class ExportNote(Contract):
    """What an export's form could hold of the records: all are written or left out, for one reason each.

    ``omitted`` counts, by part, records that were written without it.
    """

    written: int
    left_out: dict[str, int] = Field(default_factory=dict)
    omitted: dict[str, int] = Field(default_factory=dict)


class RungYield(Contract):
    """A rung's responses: on how many it was ``tried``, how many it made usable, and in how many ``accepted`` answers
    that ended. One response may hold several answers.
    """

    tried: int = 0
    gained: int = 0
    accepted: int = 0


class SourceRows(Contract):
    """What a mixture took from one of its datasets. ``train`` rows are offered ``epochs`` times, others once.

    All rows offered are taken, or left out for a reason.
    """

    dataset_id: str
    weight: float
    epochs: int
    rows: dict[Split, int]
    taken: dict[Split, int]
    left_out: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _conserved(self) -> "SourceRows":
        offered = sum(rows * (self.epochs if split == "train" else 1) for split, rows in self.rows.items())
        settled = sum(self.taken.values()) + sum(self.left_out.values())
        if offered != settled:
            raise ValueError(f"{self.dataset_id} offered {offered} rows, but {settled} were taken or left out")
        return self


class Reviewed(Contract):
    """What a review did to a frozen dataset, up to and with its decision number ``decisions``.

    ``edited`` and ``promoted`` are rows that it has; ``overrides`` of them were kept although a check spoke against
    them.
    """

    decisions: int
    edited: int = 0
    promoted: int = 0
    overrides: int = 0


class DatasetManifest(StoredContract):
    """A dataset version. ``counts`` are of answers asked for; ``records`` counts the rows that were written.

    One answer makes a row for each way of asking. ``rows_made`` are all of them, before the set was looked at as a
    whole; what that dropped is in ``drops_key``. ``passages`` is how many there were to ask of,
    ``left_out`` counts answers that were not asked for because the model knows them already. None is for data from
    before these were kept.

    Of a mixture or a frozen set ``counts`` are of rows instead: those offered by the datasets it was made from, and
    which were taken. Its ``corpus_id`` is the first's, ``more_corpus_ids`` are the others'.
    """

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
    export_notes: dict[str, ExportNote] = Field(default_factory=dict)
    more_corpus_ids: Sequence[str] = ()
    created_at: datetime = Field(default_factory=utc_now)
    rows_made: int | None = None
    dropped_by_rule: dict[str, int] = Field(default_factory=dict)
    drops_key: str | None = None
    quality_key: str | None = None
    rungs: dict[Rung, RungYield] = Field(default_factory=dict)
    coverage: dict[Axis, AxisCoverage] = Field(default_factory=dict)
    hedged_calls: int = 0
    budget_spent: BudgetSpent | None = None
    passages: int | None = None
    left_out: int = 0
    answer_form: AnswerForm | None = None
    sources: Sequence[SourceRows] = ()
    parent_dataset_id: str | None = None
    reviewers: Sequence[str] = ()
    reviewed: Reviewed | None = None

    @model_validator(mode="after")
    def _rows_conserved(self) -> "DatasetManifest":
        settled = sum(self.records.values()) + sum(self.dropped_by_rule.values())
        if self.rows_made is not None and self.rows_made != settled:
            raise ValueError(
                f"{self.rows_made} rows were made, but {self.records} were written and {self.dropped_by_rule} dropped"
            )
        return self
