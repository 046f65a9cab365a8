"""The generator's worker processes: starts them, hears them, and sees to it that none is left."""

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Self

from pydantic import ValidationError

from textmill.errors import Transient
from textmill_inference.loadtest.orders import FromWorker, Go, Order

READY_S = 60.0
SILENT_S = 5.0
"""A worker reports each second. One that was silent for so long stands still, and is ended as lost."""
START_AFTER_S = 0.2
Heard = tuple[int, FromWorker | None]
"""A worker's number and its line, None when it ended without its last one."""


class Fleet:
    """A context: at its exit all workers are gone, within a second."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self._orders = orders
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._heard: queue.Queue[Heard] = queue.Queue()

    def __enter__(self) -> Self:
        try:
            for order in self._orders:
                self._start(order)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def go(self, stopping: Callable[[], bool]) -> float | None:
        """Waits until all are ready, and tells them when to begin: that time, or None if it was stopped before.

        Raises ``Transient`` when one ends before, or takes too long.
        """
        ready, deadline = 0, time.monotonic() + READY_S
        while ready < len(self._orders):
            if stopping():
                return None
            heard = self._next(0.1)
            if heard is not None and (heard[1] is None or heard[1].ready is None):
                raise Transient("a worker of the load generator ended at its start; its error is in this service's log")
            if time.monotonic() > deadline:
                raise Transient(
                    f"the load generator's workers weren't ready within {READY_S:g} s; is the machine busy?"
                )
            ready += heard is not None
        at = time.perf_counter() + START_AFTER_S
        for process in self._processes:
            _write(process, Go(at=at).to_json())
        return at

    def hear(self, until: float, stopping: Callable[[], bool]) -> Iterator[Heard]:
        """What the workers report, until each has reported its end, one is lost, ``stopping``, or ``until`` has come.

        ``until`` is on ``time.perf_counter``. A lost worker is told as (number, None), once.
        """
        running = {order.worker: time.monotonic() for order in self._orders}
        while running and not stopping():
            heard = self._next(0.1)
            now = time.monotonic()
            if heard is not None:
                worker, line = heard
                running[worker] = now
                if line is None or line.ended is not None:
                    del running[worker]
                yield heard
            silent = [worker for worker, last in running.items() if now - last > SILENT_S]
            if silent or time.perf_counter() > until:
                yield from ((worker, None) for worker in silent or list(running))
                return

    def kill(self) -> None:
        """Ends all at once. What they had not reported is lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        for reader in self._readers:
            reader.join()

    def _start(self, order: Order) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "textmill_inference.loadtest.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        except OSError as exc:
            raise Transient(f"the load generator's worker couldn't be started: {exc}") from exc
        self._processes.append(process)
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(order.worker, process.stdout), daemon=True)
        reader.start()
        self._readers.append(reader)
        _write(process, order.to_json())

    def _read(self, worker: int, stdout: IO[bytes]) -> None:
        ended = False
        with stdout:
            for line in stdout:
                try:
                    said = FromWorker.model_validate_json(line)
                except ValidationError:  # the half of a line that a kill left
                    break
                ended = said.ended is not None
                self._heard.put((worker, said))
        if not ended:
            self._heard.put((worker, None))

    def _next(self, timeout_s: float) -> Heard | None:
        try:
            return self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None


def _write(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its end is heard by the reader
        process.stdin.write(line + b"\n")
        process.stdin.flush()
