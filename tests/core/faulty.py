"""A store that crashes its caller before or after any write, and a clock that tests turn by hand."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from textmill.store import MemoryStore


class Crash(BaseException):
    """Stands for ``kill -9``: no handler may catch it."""


class CrashingStore(MemoryStore):
    """Raises ``Crash`` around the write that ``crash_in`` counts down to: before it when even, after it when odd."""

    def __init__(self) -> None:
        super().__init__()
        self.crash_in: int | None = None
        self.created: dict[str, int] = {}

    def _step(self) -> None:
        if self.crash_in is None:
            return
        self.crash_in -= 1
        if self.crash_in < 0:
            self.crash_in = None
            raise Crash

    def create(self, key: str, data: bytes) -> bool:
        self._step()
        won = super().create(key, data)
        self.created[key] = self.created.get(key, 0) + won
        self._step()
        return won

    def put(self, key: str, data: bytes) -> None:
        self._step()
        super().put(key, data)
        self._step()

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        data = b"".join(chunks)
        self.put(key, data)
        return len(data)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)
        self._step()


@dataclass
class Clock:
    time: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
