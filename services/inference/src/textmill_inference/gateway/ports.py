"""What the hot path knows of its neighbours: engines and their routes, admission, the recorder.

Everything here is called on the event loop, once an exchange, and must return at once unless it is a coroutine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from textmill_inference.gateway.keys import Caller


@dataclass(frozen=True, slots=True)
class Outcome:
    """``status`` is the engine's; 499 if the client left, 503 if nothing came. ``complete``: the answer did not break
    off. ``tokens`` are those of the answer by the engine's own count, 0 where it didn't tell."""

    status: int
    complete: bool
    tokens: int
    seconds: float
    ttft_s: float | None = None


class Upstream(Protocol):
    """An engine as the gateway sees it. Properties are cheap and safe to read from any thread."""

    in_flight: int
    """Exchanges under way. The gateway alone changes it, on its event loop; a drain waits until it is 0."""

    @property
    def name(self) -> str:
        """What people call it, for messages and metrics."""
        ...

    @property
    def model(self) -> str:
        """The model name that the engine itself answers to; the request is sent with it where the client's differs."""
        ...

    @property
    def url(self) -> str:
        """Without a slash at the end. Read anew for each try, since a restart changes it."""
        ...

    @property
    def ready(self) -> bool: ...

    @property
    def trouble(self) -> str: ...

    def suspect(self) -> None:
        """Somebody saw it fail: look at once. Returns at once."""
        ...

    def note(self, outcome: Outcome) -> None:
        """How an exchange with it ended, a shadow's copy included. Once for each, when it is over; a try that was
        repeated elsewhere is noted too, as incomplete. Canaries are judged by it."""
        ...


class Route(Protocol):
    """What a model name leads to."""

    def take_shadow(self) -> Upstream | None:
        """The shadow, if this request is one that it gets a copy of, and is not busy; asked once an exchange.

        The share and the bound on copies in flight are the route's. The copy's answer is read, noted and thrown away.
        """
        ...

    def choose(self, sample: float) -> Upstream:
        """``sample`` is uniform in [0, 1): it decides between the stable engine and the canary.

        Asked anew for each try, with the same sample, so that a request goes where the model is by then.
        """
        ...


Routes = Callable[[], Mapping[str, Route]]
"""A snapshot of the served names that is never changed afterwards."""


class Permit(Protocol):
    """A place among the requests that are being answered."""

    def release(self, tokens_used: int | None = None) -> None:
        """The exchange is over. ``tokens_used`` counts prompt and answer; None where the answer didn't tell."""
        ...

    def give_back(self) -> None:
        """The request never reached an engine: it counts for nothing."""
        ...


class Admission(Protocol):
    """Who may go on now, who waits, and who is told to come back later."""

    def try_enter(self, caller: Caller, model: str, tokens: int) -> Permit | None:
        """A permit if one is free and nobody waits; None if ``enter`` has to be awaited.

        ``tokens`` is what the request may cost: a guess at its prompt and its ``max_tokens``.

        Raises:
            OpenAIError: 429 or 403; the message says which limit.
        """
        ...

    async def enter(self, caller: Caller, model: str, tokens: int) -> Permit:
        """Wait for a turn. Cancelling gives the place in the queue up.

        Raises:
            OpenAIError: 429 with Retry-After when the queue is full or the deadline has passed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One exchange that is over. Times are seconds since the epoch; ``answer`` is cut off at the recorder's bound.

    ``status`` is what the client was sent, 499 if it left first. ``complete`` says that the whole answer was sent.
    ``shadow`` marks the copy that a shadow answered, under the same ``request_id``.
    """

    request_id: str
    route: str
    model: str
    upstream: str
    caller: Caller
    status: int
    complete: bool
    streamed: bool
    request: bytes
    answer: bytes
    answer_cut: bool
    began_at: float
    first_byte_at: float | None
    ended_at: float
    shadow: bool = False


class Recorder(Protocol):
    """Keeps exchanges for those who agreed to it."""

    @property
    def answer_bytes(self) -> int:
        """How much of an answer is kept at most."""
        ...

    def wants(self, caller: Caller, model: str) -> bool: ...

    def record(self, exchanged: Exchanged) -> None:
        """Never blocks: what can't be taken now is counted and dropped."""
        ...
