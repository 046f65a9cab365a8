"""Logged traffic: who agreed to it, what one exchange was, what people said of it, and what is made of both.

An exchange that becomes a training record travels as a *transcript*, a text that the answer can be read back from to
the letter. Knows nothing of stores.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from textmill.contracts.base import Contract, Id, StoredContract, new_id, utc_now
from textmill.contracts.datasets import Message
from textmill.contracts.synthesis import AskingOptions, QualityOptions

Rating = Literal["up", "down"]
RequestId = str
Verdict = Literal["corrected", "approved"]
"""Why an answer may be trained on: somebody wrote a better one, or somebody said that it is right."""


class LogRule(Contract):
    """Whose exchanges are kept: those of ``model`` asked by keys of ``group``; None stands for any.

    Of every thousand requests exactly ``1000 * share`` are kept.
    """

    model: str | None = None
    group: str | None = None
    share: float = Field(default=1.0, ge=0, le=1)

    @field_validator("share")
    @classmethod
    def _in_thousandths(cls, value: float) -> float:
        if abs(value * 1000 - round(value * 1000)) > 1e-9:
            raise ValueError(f"share {value} is finer than a thousandth; give at most three decimals, e.g. 0.125")
        return value

    def covers(self, model: str, group: str) -> bool:
        return self.model in (None, model) and self.group in (None, group)


class TrafficPolicy(StoredContract):
    """The first rule that covers a request decides. Without rules, which is the default, nothing is kept.

    What is kept goes after ``retention_days``, feedback too.
    """

    rules: tuple[LogRule, ...] = Field(default=(), max_length=1_000)
    retention_days: int = Field(default=30, ge=1, le=3_650)


class Exchange(StoredContract):
    """One request and its answer, without the personal data that could be told from it.

    Either ``messages`` or ``prompt`` is there. ``redacted`` counts what was taken out, by kind. ``answer`` is that of
    the first choice. ``upstream`` is the engine that answered, ``group`` the group of the asker's key; the key itself
    isn't kept. ``shadow`` marks a copy that a shadow answered and no client saw. Token counts are the server's, None
    where it gave none.
    """

    request_id: RequestId
    at: datetime
    model: str
    upstream: str = ""
    group: str = ""
    route: str
    messages: Sequence[dict[str, JsonValue]] = ()
    prompt: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    answer: str = ""
    tool_calls: Sequence[JsonValue] = ()
    finish_reason: str | None = None
    status: int
    complete: bool
    streamed: bool
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    ttft_s: float | None = None
    seconds: float
    redacted: dict[str, int] = Field(default_factory=dict)
    shadow: bool = False


class NewFeedback(Contract):
    """What somebody says of an answer. At least one of rating, corrected answer and comment."""

    request_id: RequestId = Field(min_length=1, max_length=128)
    rating: Rating | None = None
    corrected_answer: str | None = Field(default=None, min_length=1, max_length=100_000)
    comment: str | None = Field(default=None, min_length=1, max_length=10_000)
    author: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _says_something(self) -> "NewFeedback":
        if self.rating is None and self.corrected_answer is None and self.comment is None:
            raise ValueError("give at least one of 'rating', 'corrected_answer' and 'comment'")
        return self


class Feedback(NewFeedback, StoredContract):
    """Stored once and never changed; a person who thinks again sends another one."""

    feedback_id: Id
    created_at: datetime = Field(default_factory=utc_now)
    redacted: dict[str, int] = Field(default_factory=dict)


class TrafficFilter(Contract):
    """Which exchanges: from ``since`` up to ``until``, those of a model or of a group of keys, the first ``limit``.

    Copies that a shadow answered are left out unless ``shadows`` says otherwise.
    """

    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    group: str | None = None
    shadows: bool = False
    limit: int = Field(default=10_000, ge=1, le=100_000)

    @field_validator("since", "until")
    @classmethod
    def _with_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; write e.g. {value.isoformat()}Z")
        return value

    def plain(self) -> "TrafficFilter":
        """The filter alone, of one that says more."""
        return TrafficFilter.model_validate({name: getattr(self, name) for name in TrafficFilter.model_fields})

    def covers(self, exchange: Exchange) -> bool:
        return (
            self.model in (None, exchange.model)
            and self.group in (None, exchange.group)
            and (self.shadows or not exchange.shadow)
            and (self.since is None or exchange.at >= self.since)
            and (self.until is None or exchange.at < self.until)
        )


class NewTrace(TrafficFilter):
    """Make a replay trace. ``with_messages`` puts the (redacted) prompts in; else only their lengths are there."""

    with_messages: bool = False


class TraceManifest(StoredContract):
    """Arrivals in JSON lines at ``lines_key``, in the form that a load test replays.

    ``left_out`` counts exchanges that can't be replayed, by reason. ``estimated`` counts those whose answer came
    without token counts, as streams do unless asked: they have as many tokens to a character as the others of the
    trace. ``truncated``: the log had more than ``limit``.
    """

    trace_id: Id
    requests: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    left_out: dict[str, int]
    estimated: int
    truncated: bool
    with_messages: bool
    lines_key: str
    source: TrafficFilter
    created_at: datetime = Field(default_factory=utc_now)


class NewHarvest(TrafficFilter):
    """Make training records of what people approved or corrected.

    ``take`` says which. ``with_redacted`` takes exchanges too from which personal data was taken out: the records then
    have placeholders such as ``[mobile]`` in them. ``asking`` and ``quality`` are synth's, as in a synth job;
    ``eval_fraction`` would need several documents, so all records are for training.
    """

    take: tuple[Verdict, ...] = Field(default=("corrected", "approved"), min_length=1)
    with_redacted: bool = False
    asking: AskingOptions = AskingOptions()
    quality: QualityOptions = QualityOptions()


class HarvestRow(StoredContract):
    """A line of a harvested document. ingest takes ``text``; the rest leads back to the exchange."""

    text: str
    request_id: RequestId
    verdict: Verdict
    model: str
    at: datetime
    feedback_ids: Sequence[Id]


class HarvestManifest(StoredContract):
    """What was taken, and the jobs that make a dataset of it: document, corpus, records.

    Every exchange that was looked at is taken or left out for a reason. ``feedback_without_exchange`` counts requests
    that were rated but never logged, are gone, or aren't covered by the filter.
    """

    harvest_id: Id
    job_id: Id
    looked_at: int
    taken: dict[Verdict, int]
    left_out: dict[str, int]
    feedback_without_exchange: int
    rows_key: str
    document_id: Id
    corpus_id: Id
    dataset_id: Id
    source: TrafficFilter
    created_at: datetime = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _conserved(self) -> "HarvestManifest":
        settled = sum(self.taken.values()) + sum(self.left_out.values())
        if settled != self.looked_at:
            raise ValueError(f"{self.looked_at} exchanges were looked at, but {settled} taken or left out")
        return self


class Deletion(Contract):
    """What went with a request id. ``still_in`` are harvests that have it; their documents and datasets do, too."""

    request_id: RequestId
    exchanges: int
    feedback: int
    still_in: Sequence[Id] = ()


def new_harvest_id() -> str:
    return new_id("hrv")


# -- transcripts -------------------------------------------------------------------------------------------------------

_MARK = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as text: each turn under ``[role]``, which ends with an answer.

    Raises:
        ValueError: it couldn't be read back as it was, since a turn has such a line itself, calls tools, is empty, or
            begins or ends with white space.
    """
    text = "\n\n".join(f"[{message.role}]\n{message.content}" for message in messages)
    if parse_transcript(text) != tuple(messages):
        raise ValueError("the conversation can't be written as a transcript and read back the same")
    return text


def parse_transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript; empty for any other text."""
    marks = list(_MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        return ()
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    if not all(turns):
        return ()
    return tuple(
        Message.model_validate({"role": mark.group(1), "content": turn})
        for mark, turn in zip(marks, turns, strict=True)
    )
