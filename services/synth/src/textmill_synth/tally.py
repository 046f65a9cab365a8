"""Counts what was asked for and how it ended, apart from each other, so that a lost row can't hide."""

from collections import Counter
from dataclasses import dataclass, field

from textmill.contracts.datasets import Counts, Strategy


@dataclass
class Tally:
    """``requested`` is counted when an answer is asked for, the rest when it is written down.

    What was ``left_out`` on purpose was not asked for: it stands beside the balance.
    """

    requested: Counter[Strategy] = field(default_factory=Counter)
    accepted: Counter[Strategy] = field(default_factory=Counter)
    rejected: Counter[tuple[Strategy, str]] = field(default_factory=Counter)
    dead_lettered: Counter[Strategy] = field(default_factory=Counter)
    left_out: Counter[Strategy] = field(default_factory=Counter)

    def by_strategy(self) -> dict[Strategy, Counts]:
        """Raises ``ValidationError`` when what was asked for and what was settled differ."""
        return {strategy: self._counts([strategy]) for strategy in sorted(self.requested)}

    def total(self) -> Counts:
        """Raises ``ValidationError`` when what was asked for and what was settled differ."""
        return self._counts(
            sorted({*self.requested, *self.accepted, *self.dead_lettered, *(s for s, _ in self.rejected)})
        )

    def _counts(self, strategies: list[Strategy]) -> Counts:
        reasons: Counter[str] = Counter()
        for (strategy, reason), count in self.rejected.items():
            if strategy in strategies:
                reasons[reason] += count
        return Counts(
            requested=sum(self.requested[s] for s in strategies),
            accepted=sum(self.accepted[s] for s in strategies),
            rejected=reasons.total(),
            dead_lettered=sum(self.dead_lettered[s] for s in strategies),
            rejected_by_reason=dict(sorted(reasons.items())),
        )
