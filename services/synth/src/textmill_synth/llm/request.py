"""What is asked of an LLM, and what can come back: an answer, or a fault of one try. Knows no HTTP."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from pydantic import JsonValue
from pydantic_core import to_json

from textmill.contracts.datasets import Message
from textmill.errors import TextmillError

FaultKind = Literal[
    "llm_timeout",
    "llm_rate_limited",
    "llm_server_error",
    "llm_connection",
    "llm_bad_response",
    "llm_bad_request",
    "llm_over_token_limit",
    "budget_spent",
]
Schema = Mapping[str, JsonValue]
_TOKENS_PER_MESSAGE = 8
"""Role, separators and the like, generously."""


class CallFailed(TextmillError):
    """One call got no usable answer in all its tries; the others may. Caught by ``generation``: a dead letter."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


@dataclass(frozen=True)
class ChatRequest:
    """One call, and nothing that doesn't change its answer. ``sample`` tells draws of one prompt apart.

    An empty ``schema`` asks for any JSON object.
    """

    model: str
    messages: Sequence[Message]
    temperature: float
    max_tokens: int
    schema: Schema | None = None
    sample: int = 0

    @cached_property
    def key(self) -> str:
        """SHA-256 in hex of what is sent: model, parameters, rendered prompt, schema and sample index.

        The order of a schema's properties counts: under guided decoding it is the order of the answer.
        """
        return hashlib.sha256(self.payload).hexdigest()

    @cached_property
    def payload(self) -> bytes:
        """The body as JSON. The same request always has the same bytes."""
        return to_json(self.body())

    @property
    def most_tokens(self) -> int:
        """What to reserve of a limit of tokens a minute: the longest answer, and an upper bound for the prompt.

        That is a token for two bytes of ASCII, and one for each other byte: tokenizers made for English alone need 0.64
        tokens a byte of Chinese (SmolLM2), and none needs more than one.
        """
        ascii_bytes = len(self.payload.decode().encode("ascii", "ignore"))
        prompt = len(self.payload) - ascii_bytes + ascii_bytes // 2
        return prompt + _TOKENS_PER_MESSAGE * len(self.messages) + self.max_tokens

    def body(self) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = {
            "model": self.model,
            "messages": [m.openai() | {"content": m.content} for m in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.sample:
            body["seed"] = self.sample
        if self.schema is not None and not self.schema:
            body["response_format"] = {"type": "json_object"}
        elif self.schema is not None:
            schema: dict[str, JsonValue] = {"name": "sample", "schema": dict(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


@dataclass(frozen=True)
class Completion:
    """An answer. ``model`` and ``endpoint`` (a URL) say who gave it: after a failover not who was asked first."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str = field(default="", compare=False)
    endpoint: str = field(default="", compare=False)


@dataclass(frozen=True)
class Fault:
    """A try that brought no answer. ``retry_after_s`` is what the endpoint asked for.

    ``endpoint_down``: a fault that a prompt hardly causes, such as a refused connection or a 503. ``sent``: the
    request may have reached the endpoint, and be billed.
    """

    kind: FaultKind
    message: str
    retry_after_s: float | None = None
    endpoint_down: bool = False
    sent: bool = True


class Llm(Protocol):
    async def complete(self, request: ChatRequest) -> Completion:
        """Raises ``CallFailed`` for this call alone, ``DependencyDown`` when the endpoint serves nobody."""
        ...
