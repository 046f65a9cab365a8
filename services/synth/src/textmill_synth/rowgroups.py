"""Reads records out of Parquet files in the store, a row group in memory at a time, and no more of it than is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from textmill.contracts.datasets import Record
from textmill.errors import NotFound
from textmill.store import ObjectStore

_RECORDS_AT_ONCE = 100


@dataclass(frozen=True)
class RowGroup:
    """Rows that lie together in a file. ``start`` is the number of the first."""

    start: int
    size: int
    _file: pq.ParquetFile
    _index: int

    @property
    def end(self) -> int:
        return self.start + self.size

    def column(self, name: str) -> list[str]:
        """One field of all rows. Files from before the field was there say its default."""
        if name not in self._file.schema_arrow.names:
            return [Record.model_fields[name].default] * self.size
        values: list[str] = self._file.read_row_group(self._index, columns=[name]).column(0).to_pylist()
        return values

    def records(self, rows: Sequence[int] | None = None) -> Iterator[Record]:
        """Those at these places within the group, all without ``rows``. Made as they are taken."""
        table = self._file.read_row_group(self._index)
        chosen = table if rows is None else table.take(pa.array(rows, pa.int64()))
        for batch in chosen.to_batches(max_chunksize=_RECORDS_AT_ONCE):
            for row in batch.to_pylist():
                yield Record.model_validate(row)


def row_groups(store: ObjectStore, key: str, start: int = 0) -> Iterator[RowGroup]:
    """The groups of a file, numbered from ``start``. Reads the file's end."""
    file = pq.ParquetFile(pa.PythonFile(_RangeReader(store, key), mode="r"))
    for index in range(file.num_row_groups):
        group = RowGroup(start, file.metadata.row_group(index).num_rows, file, index)
        yield group
        start = group.end


class _RangeReader:
    """A file-like view of an object: what Parquet's reader asks for is one range GET each."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._position = 0
        self._size = next((info.size_bytes for info in store.list(key) if info.key == key), -1)
        if self._size < 0:
            raise NotFound(f"no object at {key!r}, though a manifest names it")
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._position + size)
        data = self._store.get_range(self._key, self._position, end)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False
