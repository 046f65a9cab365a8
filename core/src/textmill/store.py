"""The object store port, its S3 adapter and an in-memory fake.

The store is textmill's source of truth. All it must promise beyond S3's basics is create-only writes
(``If-None-Match: *``), which every claim and every commit rest on; ``probe`` refuses a store that ignores them.
Knows nothing of jobs or records. All calls block: async callers put them on a thread.
"""

import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from textmill.contracts.base import new_id
from textmill.errors import DependencyDown, NotFound, TextmillError

PART_BYTES = 16 * 1024 * 1024
"""Multipart size: the memory that one streamed upload costs, and with S3's 10,000 parts a limit of 160 GB."""
_LARGEST_COPY = 5 * 1024**3
_PROBE_PREFIX = "probe/"
_MISSING = {"NoSuchKey", "NoSuchObject", "NoSuchBucket"}


@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size_bytes: int


class ObjectStore(Protocol):
    """Keys to bytes. Every method raises ``DependencyDown`` when the store can't be reached."""

    def create(self, key: str, data: bytes) -> bool:
        """Write only if the key is free, atomically. False if it was taken; then nothing has changed."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write, replacing what was there."""
        ...

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        """Write from an iterator in constant memory; returns the size in bytes. An error leaves no object."""
        ...

    def get(self, key: str) -> bytes:
        """Raises ``NotFound``."""
        ...

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Read in constant memory. Raises ``NotFound`` before the first chunk."""
        ...

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``, less at the end of the object. Raises ``NotFound``."""
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """All objects below the prefix in key order, from the first key past ``after``. Lazy."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Server-side copy. Raises ``NotFound``."""
        ...

    def delete(self, key: str) -> None:
        """Deleting what isn't there is no error."""
        ...


def probe(store: ObjectStore) -> None:
    """Refuse a store that ignores create-only writes: on such a one two workers could both win a commit.

    Raises:
        TextmillError: the second of two create-only writes to one key went through.
    """
    key = f"{_PROBE_PREFIX}{new_id('prb')}"
    try:
        if not store.create(key, b"first") or store.create(key, b"second"):
            raise TextmillError(
                "the object store ignores create-only writes (PUT with If-None-Match: *), so jobs could be done twice; "
                "use a store that honours them: SeaweedFS 3.80+, MinIO, AWS S3, Ceph 19+"
            )
    finally:
        store.delete(key)


class MemoryStore:
    """The fake: a dict behind a lock, with the adapter's behaviour (one contract suite runs on both)."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = bytes(data)
            return True

    def put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._objects[key] = bytes(data)

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        data = b"".join(chunks)
        self.put(key, data)
        return len(data)

    def get(self, key: str) -> bytes:
        with self._lock:
            if key not in self._objects:
                raise NotFound(f"no object at {key!r}")
            return self._objects[key]

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        data = self.get(key)
        return (data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.get(key)[start:end]

    def exists(self, key: str) -> bool:
        with self._lock:
            return key in self._objects

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            found = sorted((k, len(v)) for k, v in self._objects.items() if k.startswith(prefix) and k > after)
        return (ObjectInfo(key, size) for key, size in found)

    def copy(self, source: str, target: str) -> None:
        self.put(target, self.get(source))

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(key, None)


class S3Store:
    """Any S3 server, through the minio client."""

    def __init__(self, url: str, access_key: str, secret_key: str, bucket: str, region: str = "us-east-1") -> None:
        parts = urlsplit(url)
        self._bucket = bucket
        self._http = urllib3.PoolManager(
            num_pools=4,
            maxsize=32,
            timeout=urllib3.Timeout(connect=3, read=60),
            retries=urllib3.Retry(2, backoff_factor=0.2),
        )
        self._client = Minio(
            parts.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=parts.scheme == "https",
            region=region,
            http_client=self._http,
        )
        self._describe = f"the object store at {url}"

    def ensure_bucket(self) -> None:
        """Make the bucket if it isn't there."""
        with self._wrapped():
            if not self._client.bucket_exists(self._bucket):
                self._client.make_bucket(self._bucket)

    def create(self, key: str, data: bytes) -> bool:
        # The client has no argument for If-None-Match, but a presigned PUT may carry headers that aren't signed.
        with self._wrapped():
            url = self._client.presigned_put_object(self._bucket, key)
            response = self._http.request("PUT", url, body=data, headers={"If-None-Match": "*"}, retries=False)
        if response.status in (409, 412):
            # A write whose answer was lost and that the caller repeats finds its own bytes: it did win.
            return False
        if response.status not in (200, 201, 204):
            raise DependencyDown(f"{self._describe} answered {response.status} to a create-only write of {key!r}")
        return True

    def put(self, key: str, data: bytes) -> None:
        with self._wrapped():
            self._client.put_object(self._bucket, key, io.BytesIO(data), len(data))

    def put_stream(self, key: str, chunks: Iterable[bytes]) -> int:
        source = _IteratorReader(chunks)
        with self._wrapped():
            # One part at a time: minio's pool holds three more, tells of a failed part only at the end of the stream,
            # and leaves its threads with their parts behind when the stream breaks off.
            self._client.put_object(
                self._bucket,
                key,
                source,  # type: ignore[arg-type]
                length=-1,
                part_size=PART_BYTES,
                num_parallel_uploads=1,
            )
        return source.size_bytes

    def get(self, key: str) -> bytes:
        return b"".join(self.stream(key))

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        with self._wrapped(key):
            response = self._client.get_object(self._bucket, key)
        return self._drain(response, chunk_bytes)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        with self._wrapped(key):
            response = self._client.get_object(self._bucket, key, offset=start, length=end - start)
        return b"".join(self._drain(response, 1 << 20))

    def exists(self, key: str) -> bool:
        try:
            with self._wrapped(key):
                self._client.stat_object(self._bucket, key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        with self._wrapped():
            for item in self._client.list_objects(self._bucket, prefix, recursive=True, start_after=after or None):
                if item.object_name is not None and not item.is_dir:
                    yield ObjectInfo(item.object_name, item.size or 0)

    def copy(self, source: str, target: str) -> None:
        with self._wrapped(source):
            size = self._client.stat_object(self._bucket, source).size or 0
            if size < _LARGEST_COPY:
                self._client.copy_object(self._bucket, target, CopySource(self._bucket, source))
            else:
                self._client.compose_object(self._bucket, target, [ComposeSource(self._bucket, source)])

    def delete(self, key: str) -> None:
        with self._wrapped():
            self._client.remove_object(self._bucket, key)

    def _drain(self, response: urllib3.BaseHTTPResponse, chunk_bytes: int) -> Iterator[bytes]:
        try:
            with self._wrapped():
                yield from response.stream(chunk_bytes)
        finally:
            response.close()
            response.release_conn()

    def _wrapped(self, key: str = "") -> "_Wrapped":
        return _Wrapped(self._describe, key)


class _Wrapped:
    """Turns what minio and urllib3 raise into our errors."""

    def __init__(self, describe: str, key: str) -> None:
        self._describe = describe
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, S3Error) and error.code in _MISSING:
            raise NotFound(f"no object at {self._key!r}") from error
        if isinstance(error, S3Error) and error.code in {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"}:
            raise DependencyDown(f"{self._describe} refused our keys ({error.code}): check TEXTMILL_STORE_*") from error
        if isinstance(
            error, (S3Error, ServerError, InvalidResponseError, MinioException, urllib3.exceptions.HTTPError, OSError)
        ):
            raise DependencyDown(f"{self._describe} can't be reached: {error}") from error


class _IteratorReader:
    """A file-like view of an iterator of chunks, for clients that want ``read(n)``. Holds at most one part."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = bytearray()
        self.size_bytes = 0

    def read(self, n: int = -1) -> bytes:
        while n < 0 or len(self._rest) < n:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        n = len(self._rest) if n < 0 else n
        out = bytes(self._rest[:n])
        del self._rest[:n]
        self.size_bytes += len(out)
        return out
