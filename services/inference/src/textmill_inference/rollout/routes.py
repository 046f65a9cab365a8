"""Where a model name leads: to its stable version, by percent to a canary, and a copy of some requests to a shadow.

Made and replaced by ``Table``, read by the gateway. All here is arithmetic on the event loop's own counts: no lock, no
waiting, no HTTP. A ``Route`` never changes; a rollout puts another in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from textmill_inference.engine.port import Engine
from textmill_inference.gateway.ports import Outcome
from textmill_inference.rollout.tally import Tally

SHADOW_IN_FLIGHT = 16
"""Copies that a shadow answers at once; the rest is not copied. A slow shadow so costs a bounded amount of memory."""


@dataclass(eq=False)
class Upstream:
    """One engine as a route sees it. The gateway keeps ``in_flight``, and tells how each exchange ended (``note``).

    ``model`` is the name that the engine knows, which is not ``name`` for a LoRA adapter. ``label`` tells the engines
    of one name apart.
    """

    engine: Engine
    name: str
    model: str
    label: str = ""
    in_flight: int = 0
    tally: Tally = field(default_factory=Tally)

    @property
    def url(self) -> str:
        return self.engine.url

    @property
    def ready(self) -> bool:
        return self.engine.ready and self.engine.knows(self.model)

    @property
    def trouble(self) -> str:
        if self.engine.ready and not self.engine.knows(self.model):
            return f"its engine runs, but has not loaded {self.model!r} yet"
        return self.engine.trouble

    def suspect(self) -> None:
        self.engine.suspect()

    def note(self, outcome: Outcome) -> None:
        self.tally.add(outcome)


class ShadowTap:
    """Decides which requests are copied: every ``1 / share``-th, so that the share holds without dice."""

    def __init__(self, upstream: Upstream, share: float, in_flight: int = SHADOW_IN_FLIGHT) -> None:
        self.upstream = upstream
        self.share = share
        self.skipped = 0
        self._in_flight = in_flight
        self._owed = 0.0

    def take(self) -> Upstream | None:
        self._owed += self.share
        if self._owed < 1.0 - 1e-9:
            return None
        self._owed -= 1.0
        if not self.upstream.ready or self.upstream.in_flight >= self._in_flight:
            self.skipped += 1
            return None
        return self.upstream


@dataclass(frozen=True)
class Route:
    """``stable`` are replicas that answer alike. ``canary_share`` is in [0, 1]."""

    stable: Sequence[Upstream]
    canary: Upstream | None = None
    canary_share: float = 0.0
    tap: ShadowTap | None = None

    def choose(self, sample: float) -> Upstream:
        """The canary below its share, but only while it answers: a client doesn't wait for an experiment.

        Of several replicas the one with the fewest exchanges under way.
        """
        if self.canary is not None and sample < self.canary_share and self.canary.ready:
            return self.canary
        if len(self.stable) == 1:
            return self.stable[0]
        ready = [upstream for upstream in self.stable if upstream.ready]
        return min(ready or self.stable, key=lambda upstream: upstream.in_flight)

    def take_shadow(self) -> Upstream | None:
        return self.tap.take() if self.tap is not None else None
