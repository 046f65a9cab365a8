"""What the supervision has to be told: how an engine is started, and how patiently it is watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """How to start an engine that serves ``folder`` as ``name`` on 127.0.0.1:``port``."""

    def command(self, folder: Path, name: str, port: int) -> Sequence[str]: ...

    def environment(self) -> Mapping[str, str]: ...

    def no_room(self, folder: Path) -> str:
        """Why this machine can't run one more engine with ``folder`` now; empty if it can."""
        ...


@dataclass(frozen=True)
class Care:
    """Times of the supervision, in seconds. ``misses`` unanswered health checks in a row count as a hang.

    ``swap_drain_s`` is how long a swap in place waits for the answers under way, while new requests wait for it;
    ``drain_s`` how long an engine that has to end lets them go on.
    """

    start_timeout_s: float = 300.0
    look_every_s: float = 2.0
    probe_every_s: float = 0.25
    misses: int = 6
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    stop_grace_s: float = 10.0
    swap_drain_s: float = 30.0
    drain_s: float = 300.0
