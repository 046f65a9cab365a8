"""Counts, for each axis, how many wordings were wanted, how many there are, and why the others are not.

wanted = filled + missing, by reason, over all accepted answers.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from textmill.contracts.datasets import Axis, AxisCoverage
from textmill_synth.topics import Further, Phrasing


@dataclass
class Coverage:
    """Of a whole dataset. Filled in while answers are written down."""

    wanted: Counter[Axis] = field(default_factory=Counter)
    filled: Counter[Axis] = field(default_factory=Counter)
    missing: Counter[tuple[Axis, str]] = field(default_factory=Counter)

    def note(self, further: Further, kept: Iterable[Phrasing], lost: Iterable[tuple[Axis, str]]) -> None:
        """``lost`` are the wordings that were chosen and left out after all, and why."""
        self.wanted.update(further.wanted)
        self.missing.update(further.missing)
        self.filled.update(phrasing.axis for phrasing in kept if phrasing.added)
        self.missing.update(lost)

    def report(self) -> dict[Axis, AxisCoverage]:
        """Raises ``ValidationError`` when what was wanted, and what there is or is missing, differ."""
        axes: list[Axis] = sorted({*self.wanted, *self.filled, *(axis for axis, _ in self.missing)})
        return {
            axis: AxisCoverage(
                wanted=self.wanted[axis],
                filled=self.filled[axis],
                missing={reason: n for (of, reason), n in sorted(self.missing.items()) if of == axis and n},
            )
            for axis in axes
        }
