"""The request log in the store: whole segments of JSON lines, by day, with what is deleted left out.

::

    traffic/policy.json                           who is logged, and for how long
    traffic/log/<yyyymmdd>/<segment>.jsonl        exchanges in the order they ended; create-only
    traffic/feedback/<yyyymmdd>/<request>-<id>.json
    traffic/deleted/<yyyymmdd>/<request>          nobody is shown this request any more

``<request>`` is a hash of the request id, which clients may choose. A day is that of the write, in UTC: an exchange
that began before midnight may lie in the next.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from textmill.contracts.base import content_id, new_id, utc_now
from textmill.contracts.traffic import Deletion, Exchange, TrafficFilter, TrafficPolicy
from textmill.errors import NotFound, TextmillError
from textmill.store import ObjectStore

LOG, FEEDBACK, DELETED = "traffic/log/", "traffic/feedback/", "traffic/deleted/"
_POLICY = "traffic/policy.json"


def read_policy(store: ObjectStore) -> TrafficPolicy:
    """Nothing is logged until somebody says so."""
    try:
        return TrafficPolicy.model_validate_json(store.get(_POLICY))
    except NotFound:
        return TrafficPolicy()


def write_policy(store: ObjectStore, policy: TrafficPolicy) -> None:
    store.put(_POLICY, policy.to_json())


def request_hash(request_id: str) -> str:
    return content_id("rq", request_id)


def day_of(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%d")


def new_segment_key() -> str:
    return f"{LOG}{day_of(utc_now())}/{new_id('seg')}.jsonl"


def exchanges(store: ObjectStore, wanted: TrafficFilter) -> Iterator[Exchange]:
    """What the filter covers, in the order of the log, up to the filter's limit. A segment in memory at a time."""
    deleted = deleted_hashes(store)
    left = wanted.limit
    for key in _segments(store, wanted.since):
        for line in _lines(store, key):
            exchange = _parsed(line, key)
            if wanted.covers(exchange) and request_hash(exchange.request_id) not in deleted:
                yield exchange
                left -= 1
                if not left:
                    return


def find(store: ObjectStore, request_id: str) -> list[Exchange]:
    """All exchanges with this id: clients may have used it more than once. Reads the whole log."""
    if request_hash(request_id) in deleted_hashes(store):
        return []
    return [e for key in _segments(store) for e in _with_id(store, key, request_id)]


def deleted_hashes(store: ObjectStore) -> frozenset[str]:
    return frozenset(info.key.rpartition("/")[2] for info in store.list(DELETED))


def delete(store: ObjectStore, request_id: str) -> Deletion:
    """Take a request out of the log, with its feedback. Reads the whole log.

    It is hidden at once; what is still on its way to the store goes with the next ``purge``.

    Raises:
        NotFound: neither an exchange nor feedback has this id.
    """
    hashed = request_hash(request_id)
    store.put(f"{DELETED}{day_of(utc_now())}/{hashed}", request_id.encode())
    gone = sum(_purge_segment(store, key, {request_id}) for key in _segments(store))
    said = [info.key for info in store.list(FEEDBACK) if hashed in info.key]
    for key in said:
        store.delete(key)
    if not gone and not said:
        raise NotFound(f"no request {request_id!r} in the log: it was never logged, or is past its retention")
    return Deletion(request_id=request_id, exchanges=gone, feedback=len(said))


def purge(store: ObjectStore, now: datetime) -> int:
    """Take out what came to the store after it was deleted. Looks at the last two days; returns how many."""
    since = now - timedelta(days=1)
    fresh = [info.key for info in store.list(DELETED, after=f"{DELETED}{day_of(since)}")]
    request_ids = {store.get(key).decode() for key in fresh}
    return sum(_purge_segment(store, key, request_ids) for key in _segments(store, since)) if request_ids else 0


def sweep(store: ObjectStore, retention_days: int, now: datetime) -> int:
    """Delete segments, feedback and notes of deletions that are older than the retention. Returns how many."""
    oldest = day_of(now - timedelta(days=retention_days))
    stale = [i.key for p in (LOG, FEEDBACK, DELETED) for i in store.list(p) if i.key[len(p) : len(p) + 8] < oldest]
    for key in stale:
        store.delete(key)
    return len(stale)


def _segments(store: ObjectStore, since: datetime | None = None) -> Iterator[str]:
    """From the day of ``since`` on."""
    after = f"{LOG}{day_of(since)}" if since is not None else ""
    return (info.key for info in store.list(LOG, after=after))


def _lines(store: ObjectStore, key: str) -> Iterable[bytes]:
    try:
        return [line for line in store.get(key).split(b"\n") if line]
    except NotFound:  # swept meanwhile
        return []


def _parsed(line: bytes, key: str) -> Exchange:
    try:
        return Exchange.model_validate_json(line)
    except ValidationError as exc:
        raise TextmillError(f"a line of {key} is no exchange ({exc.error_count()} errors): who wrote there?") from exc


def _with_id(store: ObjectStore, key: str, request_id: str) -> list[Exchange]:
    sign = json.dumps(request_id, ensure_ascii=False).encode()
    found = (_parsed(line, key) for line in _lines(store, key) if sign in line)
    return [exchange for exchange in found if exchange.request_id == request_id]


def _purge_segment(store: ObjectStore, key: str, request_ids: set[str]) -> int:
    """Write the segment anew without these requests. How many there were."""
    signs = [json.dumps(request_id, ensure_ascii=False).encode() for request_id in request_ids]
    lines = list(_lines(store, key))
    suspects = {line for line in lines if any(sign in line for sign in signs)}
    gone = {line for line in suspects if _parsed(line, key).request_id in request_ids}
    if not gone:
        return 0
    kept = [line for line in lines if line not in gone]
    if kept:
        store.put(key, b"".join(line + b"\n" for line in kept))
    else:
        store.delete(key)
    return sum(line in gone for line in lines)
