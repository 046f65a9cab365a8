"""Carries a stream from the event loop to a blocking reader on a thread, in bounded memory.

The loop waits while the reader is behind, so a slow store slows the client down through TCP. Knows nothing of what
the bytes are.
"""

import asyncio
import queue
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")
_DEPTH = 16
"""Chunks in flight; uvicorn's are at most 64 KiB each, so about 1 MiB an upload."""


class StreamBroken(Exception):
    """Raised in the reader when the sender failed or went away before the end."""


async def read_on_thread(chunks: AsyncIterable[bytes], reader: Callable[[Iterable[bytes]], T], threads: Executor) -> T:
    """Run ``reader`` over the stream on a thread of ``threads``; returns what it returns, raises what it raises.

    When ``chunks`` raises, the reader gets ``StreamBroken`` out of its iterator, and the error is raised after the
    reader has ended, so that whatever it had begun is undone by then.
    """
    loop = asyncio.get_running_loop()
    pipe = _Pipe(loop)
    work = loop.run_in_executor(threads, reader, pipe)
    # A reader that ends early must wake a sender that waits for room.
    work.add_done_callback(lambda _: pipe.open_wide())
    try:
        async for chunk in chunks:
            if work.done():
                break
            await pipe.send(chunk)
        pipe.end(None)
    except BaseException as exc:
        pipe.end(StreamBroken(f"the sender failed: {type(exc).__name__}"))
        await asyncio.wait([work])
        # The sender's error is the one to tell; the reader's is its echo, retrieved so that nobody warns of it.
        work.exception()
        raise
    return await work


class _Pipe:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = asyncio.Semaphore(_DEPTH)
        self._queue: queue.SimpleQueue[bytes | StreamBroken | None] = queue.SimpleQueue()
        self._wide = False

    async def send(self, chunk: bytes) -> None:
        if not self._wide:
            await self._room.acquire()
        self._queue.put(chunk)

    def end(self, error: StreamBroken | None) -> None:
        self._queue.put(error)

    def open_wide(self) -> None:
        self._wide = True
        self._room.release()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, StreamBroken):
                raise item
            self._loop.call_soon_threadsafe(self._room.release)
            yield item
