"""Lines on local disk, in the order they come, read back in the order of their shuffle keys.

So that a dataset of any size is shuffled with 16 bytes of memory a line.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

_BUFFER_BYTES = 1 << 18
"""What is written at once: each write hands the interpreter over to other threads, and waits to get it back."""


class Spool:
    """A context manager around one file. Write all, then read. A line's row is the how many-eth it was, from 0."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=_BUFFER_BYTES)
        self._orders = array("Q")
        self._starts = array("Q", [0])
        """Where each line starts, and where the next one would."""

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._orders)

    def append(self, line: bytes, order: int) -> int:
        """Returns the line's row. ``order`` is a number of 64 bits."""
        self._orders.append(order)
        self._starts.append(self._starts[-1] + len(line) + 1)
        self._file.write(line + b"\n")
        return len(self._orders) - 1

    def in_order(self) -> Iterator[tuple[int, bytes]]:
        """All rows with their lines, by ``order``; lines of one order by their row."""
        for row in np.argsort(np.array(self._orders, dtype=np.uint64), kind="stable").tolist():
            yield row, self.read(row)

    def read(self, row: int) -> bytes:
        self._file.flush()
        start, end = self._starts[row], self._starts[row + 1]
        return os.pread(self._file.fileno(), end - start - 1, start)
