"""Logged traffic as a replay trace: when requests came and how long they were, in the load test's own form."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from textmill.contracts.base import new_id
from textmill.contracts.load import Message, TraceEntry
from textmill.contracts.traffic import Exchange, NewTrace, TraceManifest
from textmill.errors import BadRequest, NotFound
from textmill.store import ObjectStore
from textmill_inference.flywheel.segments import exchanges

TRACES = "traffic/traces/"
_MOST_CHARACTERS = 64 << 20
"""Of the messages of one trace, which is sorted in memory."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What a trace needs of an exchange. ``messages`` is None where it has more than text."""

    moment: float
    request_id: str
    prompt_tokens: int | None
    output_tokens: int | None
    prompt_characters: int
    answer_characters: int
    messages: tuple[Message, ...] | None


def make_trace(store: ObjectStore, new: NewTrace) -> TraceManifest:
    """Write the trace, its manifest last. Memory: some 300 bytes a request, and its messages if they are wanted.

    Raises:
        BadRequest: nothing that the filter covers can be replayed, or its messages are too much at once.
    """
    arrivals = list(_arrivals(store, new))
    truncated = len(arrivals) > new.limit
    arrivals = sorted(arrivals[: new.limit], key=lambda arrival: arrival.moment)
    lengths, left_out = _Lengths(arrivals), Counter[str]()
    entries = list(_entries(arrivals, lengths, left_out))
    if not entries:
        raise BadRequest(f"no request to replay: of {len(arrivals)} that the filter covers, left out {dict(left_out)}")
    trace_id = new_id("trc")
    manifest = TraceManifest(
        trace_id=trace_id,
        requests=len(entries),
        seconds=entries[-1].at_s,
        prompt_tokens=sum(entry.prompt_tokens or 0 for entry in entries),
        output_tokens=sum(entry.output_tokens or 0 for entry in entries),
        left_out=dict(left_out),
        estimated=lengths.estimated,
        truncated=truncated,
        with_messages=new.with_messages,
        lines_key=f"{TRACES}{trace_id}/trace.jsonl",
        source=new.plain(),
    )
    store.put_stream(manifest.lines_key, (e.model_dump_json(exclude_defaults=True).encode() + b"\n" for e in entries))
    if new.with_messages:
        store.put(f"{TRACES}{trace_id}/requests.txt", "\n".join(a.request_id for a in arrivals).encode())
    store.create(f"{TRACES}{trace_id}/manifest.json", manifest.to_json())
    return manifest


def read_trace(store: ObjectStore, trace_id: str) -> TraceManifest:
    """Raises ``NotFound``."""
    try:
        return TraceManifest.model_validate_json(store.get(f"{TRACES}{trace_id}/manifest.json"))
    except NotFound as exc:
        raise NotFound(f"no trace {trace_id!r}; GET /v1/traffic/traces lists them") from exc


def delete_trace(store: ObjectStore, trace_id: str) -> None:
    """Raises ``NotFound``."""
    read_trace(store, trace_id)
    for info in list(store.list(f"{TRACES}{trace_id}/")):
        store.delete(info.key)


def traces_with(store: ObjectStore, request_id: str) -> list[str]:
    """Ids of the traces that have this request's messages."""
    keys = [info.key for info in store.list(TRACES) if info.key.endswith("/requests.txt")]
    return [key.split("/")[2] for key in keys if request_id in store.get(key).decode().split("\n")]


def _arrivals(store: ObjectStore, new: NewTrace) -> Iterator[_Arrival]:
    """One more than the limit, if there are so many."""
    held = 0
    for exchange in exchanges(store, new.model_copy(update={"limit": new.limit + 1})):
        messages = _plain_messages(exchange) if new.with_messages else ()
        held += sum(len(message.content) for message in messages or ())
        if held > _MOST_CHARACTERS:
            raise BadRequest(
                f"the messages of these requests have more than {_MOST_CHARACTERS >> 20} Mi characters: narrow the "
                "filter, or make the trace without messages"
            )
        yield _Arrival(
            exchange.at.timestamp(),
            exchange.request_id,
            exchange.prompt_tokens,
            exchange.output_tokens,
            _prompt_characters(exchange),
            len(exchange.answer),
            messages,
        )


class _Lengths:
    """Token counts of exchanges: the server's own, or by the characters and what a character came to elsewhere."""

    def __init__(self, arrivals: Sequence[_Arrival]) -> None:
        self._prompt = _ratio((a.prompt_tokens, a.prompt_characters) for a in arrivals)
        self._output = _ratio((a.output_tokens, a.answer_characters) for a in arrivals)
        self.estimated = 0

    def of(self, arrival: _Arrival) -> tuple[int | None, int | None]:
        """Of prompt and answer; None where it can't be told."""
        prompt, output = arrival.prompt_tokens, arrival.output_tokens
        if prompt is None and self._prompt:
            prompt = round(self._prompt * arrival.prompt_characters)
            self.estimated += 1
        if output is None and self._output and arrival.answer_characters:
            output = max(1, round(self._output * arrival.answer_characters))
        return prompt or None, output or None


def _ratio(known: Iterable[tuple[int | None, int]]) -> float | None:
    """Tokens to a character, over those that have both."""
    both = [(tokens, characters) for tokens, characters in known if tokens and characters]
    return sum(tokens for tokens, _ in both) / sum(characters for _, characters in both) if both else None


def _entries(arrivals: Sequence[_Arrival], lengths: _Lengths, left_out: Counter[str]) -> Iterator[TraceEntry]:
    """In the same order, the first at 0. A request counts as load whatever became of it."""
    began: float | None = None
    for arrival in arrivals:
        prompt_tokens, output_tokens = lengths.of(arrival)
        if arrival.messages is None:
            left_out["not_text"] += 1
        elif not arrival.messages and not prompt_tokens:
            left_out["length_unknown"] += 1
        else:
            began = arrival.moment if began is None else began
            yield TraceEntry(
                at_s=round(arrival.moment - began, 6),
                messages=arrival.messages,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
            )


def _prompt_characters(exchange: Exchange) -> int:
    texts = (text_of(turn.get("content")) for turn in exchange.messages)
    return len(exchange.prompt or "") + sum(len(text) for text in texts if text is not None)


def _plain_messages(exchange: Exchange) -> tuple[Message, ...] | None:
    """None where a turn has anything but text."""
    if exchange.prompt is not None:
        return (Message(content=exchange.prompt),)
    turns = [(turn.get("role"), text_of(turn.get("content"))) for turn in exchange.messages]
    if not turns or any(not isinstance(role, str) or text is None for role, text in turns):
        return None
    return tuple(Message(role=str(role), content=str(text)) for role, text in turns)


def text_of(content: JsonValue) -> str | None:
    """A message's content, which may come in parts; None where it has more than text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(str(text) for text in texts)
