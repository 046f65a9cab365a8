"""Who goes on to the engine now, who waits, and who is told when to come back. Runs on one event loop; sends nothing.

For each model a bounded number of requests is under way. Others wait in a bounded queue that is fair across keys by
tokens, until their deadline; what has waited too long never reaches the engine, and what has no place is refused at
once: so the engine works on requests that somebody still waits for, however many come.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from textmill.contracts.keys import KeyUse, Quota
from textmill_inference.gateway import metrics
from textmill_inference.gateway.gate import Claim, Gate, Permit, Room
from textmill_inference.gateway.keys import Caller
from textmill_inference.gateway.openai_errors import OpenAIError
from textmill_inference.gateway.quotas import Account, Refusal
from textmill_inference.gateway.windows import steady_time

__all__ = ["Admission", "Permit", "Room"]


class Admission:
    """Call it with names of models that are served. ``clock`` is Unix time that never jumps."""

    def __init__(self, room: Room | None = None, clock: Callable[[], float] = steady_time) -> None:
        self._room = room or Room()
        self._clock = clock
        self._gates: dict[str, Gate] = {}
        self.accounts: dict[str, Account] = {}
        """Of the keys that were used, by key id."""
        self._elsewhere: Mapping[str, Sequence[KeyUse]] = {}

    def try_enter(self, caller: Caller, model: str, tokens: int) -> Permit | None:
        """A permit if one is free and nobody waits; None if ``enter`` has to be awaited.

        ``tokens`` is the most that the request can cost, prompt and answer.

        Raises:
            OpenAIError: 403 for a model that is not the key's, 429 for a quota, 400 for more than a quota ever allows.
        """
        caller.check_model(model)
        gate = self._gate(model)
        return None if gate.is_full else gate.admit(self._claim(caller, model, tokens))

    async def enter(self, caller: Caller, model: str, tokens: int) -> Permit:
        """Wait for a turn. Who waits counts as under way; cancelling leaves nothing behind.

        Raises:
            OpenAIError: as ``try_enter``, and 429 when the queue is full or the deadline has passed.
        """
        permit = self.try_enter(caller, model, tokens)
        if permit is not None:
            return permit
        gate = self._gate(model)
        waiter = gate.join(self._claim(caller, model, tokens))
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            gate.abandon(waiter)
            raise

    def observe(self, model: str, running: int, waiting: int) -> None:
        """What the model's engines say of themselves: adapts how many requests may be under way there."""
        self._gate(model).observe(running, waiting)

    def under_way(self) -> dict[str, int]:
        """Requests at the engines, by model."""
        return {model: gate.in_flight for model, gate in self._gates.items()}

    def waiting(self) -> dict[str, int]:
        return {model: len(gate.queue) for model, gate in self._gates.items()}

    def limits(self) -> dict[str, int]:
        """How many may be under way now, by model."""
        return {model: gate.limit for model, gate in self._gates.items()}

    def hear(self, elsewhere: Mapping[str, Sequence[KeyUse]]) -> None:
        """What other gateways have used of the keys' quotas, in place of what they said before."""
        self._elsewhere = elsewhere
        for key_id, account in self.accounts.items():
            account.hear(elsewhere.get(key_id, ()))

    def publish(self) -> None:
        """Set the gauges of quota use: of each group the key that has used most."""
        highest: dict[tuple[str, Quota], float] = {}
        for account in self.accounts.values():
            for use in account.uses():
                at = (account.group, use.quota)
                highest[at] = max(use.used / use.allowed, highest.get(at, 0.0))
        for (group, quota), share in highest.items():
            metrics.QUOTA_USED.labels(group, quota).set(share)

    def _gate(self, model: str) -> Gate:
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = Gate(model, self._room, self._clock)
        return gate

    def _claim(self, caller: Caller, model: str, tokens: int) -> Claim:
        account = self.accounts.get(caller.key_id)
        if account is None:
            account = self.accounts[caller.key_id] = Account(caller.limits, caller.group, self._clock)
            account.hear(self._elsewhere.get(caller.key_id, ()))
        found = account.reserve(tokens)
        if isinstance(found, Refusal):
            metrics.REJECTED.labels(model, caller.group, found.quota).inc()
            raise _over_quota(found, model)
        return Claim(caller, account, found)


def _over_quota(refusal: Refusal, model: str) -> OpenAIError:
    words = refusal.quota.replace("_", " ")
    if refusal.wait_s is None:
        message = f"this request alone could use more than this API key's {words} ({refusal.allowed}): lower max_tokens"
        return OpenAIError(400, message, param="max_tokens", code="request_too_large", model=model)
    after_s = math.ceil(refusal.wait_s)
    used = f"{refusal.used} of {refusal.allowed} {words} are used or reserved"
    return OpenAIError(
        429,
        f"{used} by this API key; come again in {after_s} s",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        model=model,
        retry_after_s=after_s,
    )
