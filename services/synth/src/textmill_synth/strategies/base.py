"""What a strategy is, and what comes out of one: an answer with its evidence, a rejection, or a dead letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from textmill.contracts.datasets import Message
from textmill.contracts.datasets import Strategy as StrategyName
from textmill.contracts.documents import Passage
from textmill_synth.checks import Reason
from textmill_synth.ledger import Call, Ledger
from textmill_synth.llm import ChatRequest, FaultKind, Schema
from textmill_synth.prompts import Prompt
from textmill_synth.topics import Topic

ResponseForm = Literal["json", "text"]


@dataclass(frozen=True)
class Prompted:
    """A call and the prompt version it was made with."""

    call: Call
    prompt_version: str


@dataclass(frozen=True)
class Answer:
    """An answer that passed all checks. ``evidence`` is a span of the passage's text; ``topic`` has the questions."""

    topic: Topic
    text: str
    evidence: tuple[int, int]
    prompted: Prompted | None = None


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


Outcome = Answer | Rejection | DeadLetter


class Strategy(Protocol):
    @property
    def name(self) -> StrategyName: ...

    def topics(self, passage: Passage) -> Sequence[Topic]:
        """What is asked for of this passage: each topic is one answer requested. None when it isn't concerned."""
        ...

    async def settle(self, passage: Passage, topic: Topic) -> Answer | Rejection:
        """Raises ``CallFailed`` when the LLM gave no answer."""
        ...


@dataclass(frozen=True)
class Generator:
    """How an LLM is asked: which model, with which parameters, in which form, through the ledger."""

    ledger: Ledger
    model: str
    temperature: float
    max_tokens: int
    form: ResponseForm

    async def ask(self, passage: Passage, prompt: Prompt, schema: Schema, **slots: str) -> Prompted:
        """Render and ask. Calls of one document lie in one shard of the ledger."""
        messages: tuple[Message, ...] = prompt.render(**slots)
        structured = schema if self.form == "json" else None
        request = ChatRequest(self.model, messages, self.temperature, self.max_tokens, structured)
        call = await self.ledger.ask(request, passage.document_sha256[:2], prompt.version)
        return Prompted(call, prompt.version)
