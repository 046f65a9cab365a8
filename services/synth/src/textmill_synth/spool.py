"""Lines on local disk, in the order they come, read back in the order of their shuffle keys.

So that a dataset of any size is shuffled with some 80 bytes of memory a line.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


class Spool:
    """A context manager around one file. Write all, then read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._places: list[tuple[int, int]] = []

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def append(self, line: bytes, order: int) -> None:
        self._places.append((order, self._file.tell()))
        self._file.write(line + b"\n")

    def in_order(self) -> Iterator[bytes]:
        """All lines, by ``order``; lines of one order by their place."""
        for _, place in sorted(self._places):
            self._file.seek(place)
            yield self._file.readline().rstrip(b"\n")
