"""Exchanges as the gateway would hand them over, and a store that can be down."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from textmill.contracts.traffic import Exchange, TrafficFilter, TrafficPolicy
from textmill.errors import DependencyDown
from textmill.store import MemoryStore
from textmill_inference.flywheel.segments import exchanges, new_segment_key, write_policy
from textmill_inference.gateway.keys import Caller
from textmill_inference.gateway.ports import Exchanged

CALLER = Caller("key_1", "desk", "support")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVERYONE = TrafficPolicy.model_validate({"rules": [{}]})


class MoodyStore(MemoryStore):
    """``down`` refuses every write to the log."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.refused = 0

    def create(self, key: str, data: bytes) -> bool:
        if self.down and key.startswith("traffic/log/"):
            self.refused += 1
            raise DependencyDown("the store is away")
        return super().create(key, data)


def exchanged(number: int = 0, question: str = "How many lines?", said: str = "Six.", **changed: object) -> Exchanged:
    request = changed.pop("request", None) or {"model": "small", "messages": [{"role": "user", "content": question}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    whole = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    values: dict[str, object] = {
        "request_id": f"req_{number}", "route": "chat", "model": "small", "upstream": "small-1", "caller": CALLER,
        "status": 200, "complete": True, "streamed": False, "request": json.dumps(request).encode(),
        "answer": json.dumps(whole).encode(), "answer_cut": False, "began_at": NOON.timestamp() + number,
        "first_byte_at": NOON.timestamp() + number + 0.5, "ended_at": NOON.timestamp() + number + 2,
    }  # fmt: skip
    return Exchanged(**{**values, **changed})  # type: ignore[arg-type]


def logged(number: int = 0, question: str = "How many lines?", answer: str = "Six.", **changed: object) -> Exchange:
    values: dict[str, object] = {
        "request_id": f"req_{number}", "at": datetime.fromtimestamp(NOON.timestamp() + number, UTC), "model": "small",
        "group": "support", "route": "chat", "messages": [{"role": "user", "content": question}], "answer": answer,
        "finish_reason": "stop", "status": 200, "complete": True, "streamed": False, "prompt_tokens": 7,
        "output_tokens": 3, "seconds": 2.0,
    }  # fmt: skip
    return Exchange.model_validate({**values, **changed})


def store_with(*kept: Exchange, segments: int = 1) -> MoodyStore:
    """The log as it would be written, in so many segments."""
    store = MoodyStore()
    for part in range(segments):
        lines = [exchange.to_json() + b"\n" for exchange in kept[part::segments]]
        store.create(new_segment_key(), b"".join(lines))
    write_policy(store, EVERYONE)
    return store


def all_logged(store: MemoryStore, **where: object) -> list[Exchange]:
    return list(exchanges(store, TrafficFilter.model_validate(where)))


def stored_text(store: MemoryStore, prefix: str = "") -> Iterator[str]:
    for info in store.list(prefix):
        yield store.get(info.key).decode()
