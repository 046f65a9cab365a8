"""Keeps the programs of a bench apart: each to cores of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Processes started inside keep to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
