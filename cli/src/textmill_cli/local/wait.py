"""Waiting for something to become true."""

import time
from collections.abc import Callable

from textmill.errors import Transient


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Raises ``Transient`` naming what did not come in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Transient(f"{what} was not ready after {timeout_s:.0f} s")
        time.sleep(every_s)
