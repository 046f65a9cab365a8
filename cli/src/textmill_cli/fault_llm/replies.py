"""What the server can do with a request: say something, answer with an error, or misbehave on the wire.

Values only. ``plan`` chooses among them, ``server`` performs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

RATE_LIMITED = "Rate limit reached; please slow down"
"""What a 429 says: some clients look for 'rate limit' in the message, whatever the status."""


@dataclass(frozen=True)
class Received:
    """A chat request. ``call`` is a hash of its body; ``tries`` counts the earlier requests with the same body.

    ``number`` counts all requests. Both begin at 0.
    """

    number: int
    call: str
    tries: int
    body: Mapping[str, JsonValue]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Say:
    """A chat completion with this text."""

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int = 100
    completion_tokens: int = 10


@dataclass(frozen=True)
class Status:
    """An error status, with Retry-After when given."""

    status: int
    retry_after: str | None = None
    message: str = "planted"


@dataclass(frozen=True)
class Garbage:
    """Status 200 and a body that is no chat completion."""


@dataclass(frozen=True)
class Drip:
    """A byte now and then, for ever."""

    every_s: float = 1.0


@dataclass(frozen=True)
class Stall:
    """Nothing at all, for ever."""


@dataclass(frozen=True)
class Hang:
    """The connection is closed before an answer."""


Reply = Say | Status | Garbage | Drip | Stall | Hang


@dataclass(frozen=True)
class Decision:
    """A reply, the name it is counted under, and how many seconds pass before its first byte."""

    reply: Reply
    outcome: str
    after_s: float = 0.0
