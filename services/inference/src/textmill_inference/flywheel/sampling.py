"""Decides which requests are logged: exactly so many of each thousand, at places nobody can foresee."""

import random

from textmill.contracts.traffic import LogRule, TrafficPolicy

_BLOCK = 1_000


class Sampler:
    """Follows one policy. Called on the event loop alone; some tens of nanoseconds a request.

    Every rule deals out its own requests in blocks of a thousand, shuffled anew each time: a share is met exactly, and
    traffic with a rhythm of its own doesn't fall in step with it.
    """

    def __init__(self, policy: TrafficPolicy, seed: int | None = None) -> None:
        self._rules = [_Dealer(rule, random.Random(seed)) for rule in policy.rules]
        self._found: dict[tuple[str, str], _Dealer | None] = {}

    def wants(self, model: str, group: str) -> bool:
        """True if this request is to be logged. Every call counts as one request."""
        if not self._rules:
            return False
        asked = (model, group)
        if asked not in self._found:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[asked] = next((d for d in self._rules if d.rule.covers(model, group)), None)
        dealer = self._found[asked]
        return dealer is not None and dealer.deal()


_MOST_REMEMBERED = 10_000


class _Dealer:
    """One rule's block."""

    def __init__(self, rule: LogRule, chance: random.Random) -> None:
        self.rule = rule
        self._chance = chance
        self._taken = round(rule.share * _BLOCK)
        self._block: list[bool] = []

    def deal(self) -> bool:
        if self._taken in (0, _BLOCK):
            return self._taken > 0
        if not self._block:
            self._block = [True] * self._taken + [False] * (_BLOCK - self._taken)
            self._chance.shuffle(self._block)
        return self._block.pop()
