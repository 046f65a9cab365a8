"""Ports for servers that a test starts, such that nobody takes one between its choice and the server's start.

A port that the kernel chooses may be chosen again at once, for another test's server or for a client's connection.
These lie below those that the kernel gives out (on Linux from 32768), and each pytest-xdist worker has a thousand of
its own.
"""

import os
from itertools import count

from textmill_cli.local.ports import is_free

_FIRST, _EACH, _MOST_WORKERS = 10_000, 1_000, 20
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS
_numbers = count(os.getpid())  # not that of another run on this machine


def any_free() -> int:
    """A port that nobody listens on, another one each time."""
    ports = (_FIRST + _worker * _EACH + number % _EACH for number in _numbers)
    return next(port for port in ports if is_free(port))
