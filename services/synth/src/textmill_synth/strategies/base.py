"""What a strategy is, and what comes out of one: an answer with its evidence, a rejection, or a dead letter.

A strategy plans requests for a source and settles each by as few calls as it can: one outcome for every row that it
asked for, in their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from textmill.contracts.datasets import Message, Rung, Tool
from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Passage
from textmill.contracts.synthesis import QuestionSet
from textmill_synth.checks import Finding, Reason
from textmill_synth.ledger import Call, Ledger
from textmill_synth.llm import ChatRequest, FaultKind, Schema
from textmill_synth.prompts import Prompt
from textmill_synth.topics import Topic, owner_topics, subject_topic

ResponseForm = Literal["json", "text"]
Span = tuple[int, int]
"""A half-open range of characters of a passage's text."""


@dataclass(frozen=True)
class Prompted:
    """A call, the prompt version it was made with, and what it took to make its response usable."""

    call: Call
    prompt_version: str
    rung: Rung = "as_asked"


@dataclass(frozen=True)
class Quotation:
    """Words of a passage, which may be another one than the answer's own."""

    passage: Passage
    span: Span


@dataclass(frozen=True)
class Answer:
    """An answer that passed all checks. ``evidence`` is a span of the passage's text; ``topic`` has the questions.

    The record's messages are ``before``, the question in one of its wordings, ``between``, and ``text``: ``before`` are
    the earlier turns of a conversation, ``between`` is a tool call with the tool's reply. ``key_facts`` are the strings
    that a right answer contains, besides the topic's key.
    """

    topic: Topic
    text: str
    evidence: Span
    prompted: Prompted | None = None
    before: Sequence[Message] = ()
    between: Sequence[Message] = ()
    tools: Sequence[Tool] = ()
    more_evidence: Sequence[Quotation] = ()
    key_facts: Sequence[str] = ()


@dataclass(frozen=True)
class Rejection:
    """An answer that must not be trained on, with all that the model said."""

    reason: Reason
    detail: str
    raw: str = ""
    prompted: Prompted | None = None


@dataclass(frozen=True)
class DeadLetter:
    """No answer came, in all its tries."""

    reason: FaultKind
    detail: str


Settlement = Answer | Rejection
Outcome = Answer | Rejection | DeadLetter


@dataclass(frozen=True)
class Source:
    """What records are made of: a passage, the one that follows it in its document, and what it was asked so far.

    ``accepted`` is filled for the strategies that build on others (``Strategy.after_others``).
    """

    passage: Passage
    following: Passage | None = None
    accepted: Sequence[Answer] = ()


@dataclass(frozen=True)
class Request:
    """What one call is to bring: a row for each topic. ``builds_on`` is the answer that is made into another one."""

    topics: Sequence[Topic]
    builds_on: Answer | None = None


class Strategy(Protocol):
    @property
    def name(self) -> StrategyName: ...

    @property
    def after_others(self) -> bool:
        """Whether it works on what the other strategies' answers to the same passage were."""
        ...

    def plan(self, source: Source) -> Sequence[Request]:
        """What is asked for of this source. Nothing when the strategy isn't concerned with it."""
        ...

    async def settle(self, source: Source, request: Request) -> Sequence[Settlement]:
        """One settlement for each topic of the request. Raises ``CallFailed`` when the LLM gave no answer at all."""
        ...


@dataclass(frozen=True)
class Generator:
    """How an LLM is asked: which model, with which parameters, in which form, through the ledger.

    ``max_tokens`` is for one text of an answer's length. ``enforced`` says that the endpoint holds JSON to its schema;
    else it is asked for any JSON object. ``prompts`` collects, by version, the templates that were used.
    """

    ledger: Ledger
    model: str
    temperature: float
    max_tokens: int
    form: ResponseForm
    enforced: bool = True
    prompts: dict[str, Prompt] = field(default_factory=dict)

    async def ask(
        self,
        passage: Passage,
        prompt: Prompt,
        schema: Schema | None,
        slots: Mapping[str, object],
        texts: int = 1,
        sample: int = 0,
    ) -> Prompted:
        """Render and ask for ``texts`` texts of an answer's length. ``schema`` None asks for plain text.

        ``sample`` tells draws of one prompt apart. Calls of one document lie in one shard of the ledger.
        """
        self.prompts.setdefault(prompt.version, prompt)
        messages = prompt.render(**slots, form=self.form)
        structured = None if schema is None or self.form == "text" else schema if self.enforced else {}
        request = ChatRequest(self.model, messages, self.temperature, self.max_tokens * texts, structured, sample)
        call = await self.ledger.ask(request, passage.document_sha256[:2], prompt.version)
        return Prompted(call, prompt.version)


def rejected(finding: Finding, prompted: Prompted | None = None) -> Rejection:
    """The rejection for what was found in the response to a call, or before there was one."""
    return Rejection(finding.reason, finding.detail, prompted.call.completion.text if prompted else "", prompted)


def topics_of(passage: Passage, question_sets: Sequence[QuestionSet]) -> Sequence[Topic]:
    """What the owner asks of this passage; without questions of the owner's, what its heading stands for."""
    return owner_topics(passage, question_sets) if question_sets else [subject_topic(passage)]
