"""Runs coroutines side by side and leaves none running, whatever happens."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

T = TypeVar("T")


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results in order. The first error ends the others and is raised as it is.

    ``asyncio.gather`` would leave the others running, and a ``TaskGroup`` wrap the error into an ``ExceptionGroup``.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
