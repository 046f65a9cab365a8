"""Which fault meets which request: a share of each kind, drawn from the seed, the request's body and its try.

So the n-th try of a call always meets the same fate, however many calls run beside it and in whatever order they come.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

from textmill.errors import BadRequest
from textmill_cli.fault_llm.content import answer, refusal
from textmill_cli.fault_llm.prompt import Prompt, read_prompt
from textmill_cli.fault_llm.replies import RATE_LIMITED, Decision, Drip, Garbage, Received, Reply, Say, Stall, Status

RETRY_AFTER_S = "1"


@dataclass(frozen=True)
class Rates:
    """The share of requests, from 0 to 1, that each fault meets; the rest is answered.

    Raises:
        BadRequest: a share is negative, or they come to more than 1.
    """

    status_429: float = 0.0
    status_429_retry_after: float = 0.0
    status_500: float = 0.0
    stall: float = 0.0
    drip: float = 0.0
    truncate: float = 0.0
    garbage: float = 0.0
    refuse: float = 0.0

    def __post_init__(self) -> None:
        shares = dict(self.shares())
        if min(shares.values()) < 0 or sum(shares.values()) > 1 + 1e-9:
            raise BadRequest(f"the rates must be from 0 to 1 and come to 1 at most; they are {shares}")

    def shares(self) -> Iterator[tuple[str, float]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)


@dataclass(frozen=True)
class Plan:
    """``latency_s`` passes before every reply but a 429, give or take up to ``jitter_s``."""

    rates: Rates = Rates()
    seed: int = 0
    latency_s: float = 0.0
    jitter_s: float = 0.0

    def __call__(self, received: Received) -> Decision:
        try:
            prompt = read_prompt(received.body)
        except ValueError as exc:
            return Decision(Status(400, message=str(exc)), "status_400")
        which, shift, form = _draws(self.seed, received)
        fault = self._fault(which)
        if fault == "status_429":
            return Decision(Status(429, None, RATE_LIMITED), fault)
        if fault == "status_429_retry_after":
            return Decision(Status(429, RETRY_AFTER_S, RATE_LIMITED), fault)
        after_s = max(0.0, self.latency_s + self.jitter_s * (2 * shift - 1))
        outcome, reply = _performed(fault, prompt, received, form < 0.5)
        return Decision(reply, outcome, after_s)

    def _fault(self, draw: float) -> str | None:
        for name, share in self.rates.shares():
            if draw < share:
                return name
            draw -= share
        return None


def _draws(seed: int, received: Received) -> Iterator[float]:
    """Three numbers from 0 to 1 that depend on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}:{received.call}:{received.tries}".encode(), digest_size=24).digest()
    return (int.from_bytes(digest[n : n + 8]) / 2**64 for n in (0, 8, 16))


def _performed(fault: str | None, prompt: Prompt, received: Received, in_body: bool) -> tuple[str, Reply]:
    """The name that the reply is counted under, and the reply. ``in_body`` says where garbage goes, if it can."""
    match fault:
        case "status_500":
            return fault, Status(500)
        case "stall":
            return fault, Stall()
        case "drip":
            return fault, Drip()
        case "refuse":
            return fault, Say(refusal(prompt))
    said = answer(prompt, received.body)
    if fault == "truncate":
        return fault, Say(said.text[: len(said.text) // 2], "length", said.prompt_tokens, said.completion_tokens // 2)
    if fault == "garbage":
        spoilt = None if in_body else _spoilt(said.text)
        return ("garbage_body", Garbage()) if spoilt is None else ("garbage_content", Say(spoilt))
    return "answered", said


def _spoilt(text: str) -> str | None:
    """JSON with a slip that models make: a trailing comma and an end that never comes. None if it is no JSON."""
    return text.rstrip("]} ") + ",\n" if text.startswith(("{", "[")) else None
