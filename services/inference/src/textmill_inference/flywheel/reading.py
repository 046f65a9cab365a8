"""Reads an exchange out of the bytes that went over the wire: OpenAI's request, and its answer whole or as a stream.

Keeps what a replay or a training record needs, and nothing that names the user. Knows nothing of stores.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import JsonValue

from textmill.contracts.traffic import Exchange
from textmill_inference.flywheel.redact import Redactor
from textmill_inference.gateway.ports import Exchanged

_KEPT = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "response_format",
    "tools", "tool_choice", "min_tokens", "ignore_eos",
)  # fmt: skip
"""Parameters of a request that are stored. ``user`` and ``metadata`` tell who asked, so they aren't."""


class Unreadable(Exception):
    """Not an exchange in OpenAI's form. The message is a metric's label: ``request``, ``answer``, ``store_false``."""


@dataclass
class _Said:
    """The first choice of an answer, gathered."""

    text: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, JsonValue]] = field(default_factory=dict)
    finish_reason: str | None = None
    usage: Mapping[str, JsonValue] = field(default_factory=dict)


def read_exchange(exchanged: Exchanged) -> Exchange:
    """The exchange, redacted.

    Raises:
        Unreadable: the request is no JSON object, the answer can't be read, or the client forbade keeping it
            (``"store": false``).
    """
    request = _object(exchanged.request, "request")
    if request.get("store") is False:
        raise Unreadable("store_false")
    said = _said(exchanged) if exchanged.status == 200 else _Said()
    redact = Redactor()
    messages = request.get("messages")
    prompt = request.get("prompt")
    return Exchange(
        request_id=exchanged.request_id,
        at=datetime.fromtimestamp(exchanged.began_at, UTC),
        model=exchanged.model,
        upstream=exchanged.upstream,
        group=exchanged.caller.group,
        route=exchanged.route,
        messages=[redact.mapping(m) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else (),
        prompt=redact.text(prompt) if isinstance(prompt, str) else None,
        parameters=redact.mapping({name: request[name] for name in _KEPT if name in request}),
        answer=redact.text("".join(said.text)),
        tool_calls=[redact.mapping(call) for _, call in sorted(said.calls.items())],
        finish_reason=said.finish_reason,
        status=exchanged.status,
        complete=exchanged.complete and not exchanged.answer_cut,
        streamed=exchanged.streamed,
        prompt_tokens=_count(said.usage, "prompt_tokens"),
        output_tokens=_count(said.usage, "completion_tokens"),
        ttft_s=None if exchanged.first_byte_at is None else exchanged.first_byte_at - exchanged.began_at,
        seconds=exchanged.ended_at - exchanged.began_at,
        redacted=dict(redact.counts),
        shadow=exchanged.shadow,
    )


def _said(exchanged: Exchanged) -> _Said:
    said = _Said()
    if exchanged.streamed:
        for event in _events(exchanged.answer):
            _take(event, said)
    elif not exchanged.answer_cut:
        _take(_object(exchanged.answer, "answer"), said)
    return said


def _events(answer: bytes) -> Iterator[dict[str, JsonValue]]:
    """The JSON objects of a stream; what was cut off at its end is left out."""
    for line in answer.split(b"\n"):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if not data.startswith(b"{"):
            continue
        try:
            event = json.loads(data)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def _take(event: Mapping[str, JsonValue], said: _Said) -> None:
    usage = event.get("usage")
    if isinstance(usage, dict):
        said.usage = usage
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index", 0) == 0:
            _take_choice(choice, said)


def _take_choice(choice: Mapping[str, JsonValue], said: _Said) -> None:
    message = choice.get("message") or choice.get("delta") or {}
    text = choice.get("text") if not isinstance(message, dict) or not message else message.get("content")
    if isinstance(text, str):
        said.text.append(text)
    if isinstance(reason := choice.get("finish_reason"), str):
        said.finish_reason = reason
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    for number, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            _take_call(call, number, said)


def _take_call(call: Mapping[str, JsonValue], number: int, said: _Said) -> None:
    """A stream gives a call's name first and its arguments in pieces."""
    index = call.get("index")
    known = said.calls.setdefault(index if isinstance(index, int) else number, {"name": "", "arguments": ""})
    function = call.get("function")
    for name in ("name", "arguments"):
        piece = function.get(name) if isinstance(function, dict) else None
        if isinstance(piece, str):
            known[name] = f"{known[name]}{piece}"


def _object(data: bytes, what: str) -> dict[str, JsonValue]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Unreadable(what) from exc
    if not isinstance(value, dict):
        raise Unreadable(what)
    return value


def _count(usage: Mapping[str, JsonValue], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
