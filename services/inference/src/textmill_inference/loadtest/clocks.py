"""The clocks of one request, and how it ended. All times are ``time.perf_counter``: the machine's monotonic clock."""

from dataclasses import dataclass
from typing import Literal

from textmill.contracts.loadtest import ErrorClass, Phase, SlowRequest

Source = Literal["none", "usage", "chunks"]


@dataclass(slots=True, eq=False)
class Exchange:
    """``asked``: it was handed to the wire; ``begun``: a connection was picked or dialled; ``sent``: just before its
    bytes went to the socket.

    ``connect_s`` is what dialling took, with the wait for its turn to be dialled (a target that is slow to accept
    makes the line); 0 on a kept connection. A time of 0.0 means that it never came to that.
    """

    number: int
    phase: Phase
    scheduled: float
    request: bytes
    asked: float = 0.0
    begun: float = 0.0
    connect_s: float = 0.0
    sent: float = 0.0
    first_byte: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    source: Source = "none"
    continuous: bool = False
    """Each chunk comes with usage, so that gaps are between tokens, not between chunks."""
    chunks: int = 0
    status: int | None = None
    error: ErrorClass | None = None
    detail: str = ""
    own_limit: bool = False
    done: bool = False

    @property
    def lateness_s(self) -> float:
        """The generator's own delay: from when it was due to when it was sent, less what dialling took."""
        return self.sent - self.scheduled - self.connect_s

    def as_slow(self, run: str, began: float) -> SlowRequest:
        def since(moment: float) -> float | None:
            return (moment - self.scheduled) * 1e3 if moment else None

        return SlowRequest(
            request_id=f"{run}-{self.number}",
            scheduled_s=self.scheduled - began,
            sent_ms=since(self.sent),
            first_byte_ms=since(self.first_byte),
            first_token_ms=since(self.first_token),
            last_byte_ms=since(self.ended),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.tokens,
            outcome=self.error or "succeeded",
        )
