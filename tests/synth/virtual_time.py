"""An event loop whose clock jumps to the next timer, so that an hour passes in milliseconds and always the same way.

``asyncio.to_thread`` runs its function on the loop, after a random part of ``thread_s`` and before the rest: work done
on threads takes virtual time, and its effect falls somewhere between call and return. When nothing is left that could
ever happen, as after a leaked permit, the loop raises instead of hanging.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(Exception):
    """Everything waits for something that nobody will do."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck
        if timeout > 0:  # a wait too short to change the sum must not make time stand still
            self.now += max(timeout, 1e-9)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deterministic in ``seed``. ``thread_s`` is the longest that a call on a thread takes."""

    def __init__(self, seed: int = 0, thread_s: float = 0.02) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._random = random.Random(seed)
        self._thread_s = thread_s

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        took_s = self._random.uniform(0, self._thread_s)
        self.call_later(took_s * self._random.random(), self._call, future, took_s / 2, func, args)
        return future

    def _call(self, future: "asyncio.Future[Any]", back_s: float, func: Callable[..., Any], args: Any) -> None:
        try:
            give_back, result = future.set_result, func(*args)
        except Exception as exc:
            give_back, result = future.set_exception, exc
        self.call_later(back_s, lambda: future.done() or give_back(result))


def run(work: Coroutine[Any, Any, T], seed: int = 0, thread_s: float = 0.02) -> T:
    """Like ``asyncio.run``, on a ``VirtualLoop``. The jitter that work draws from ``random`` follows from ``seed``."""
    state = random.getstate()
    random.seed(seed)
    try:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed, thread_s)) as runner:
            return runner.run(work)
    finally:
        random.setstate(state)
