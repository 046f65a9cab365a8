"""A client's request: its body within bounds, what the gateway must know of it, and what goes on to the engine."""

import asyncio
import json
import re
from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope

from textmill import tracing
from textmill.contracts.base import new_id
from textmill_inference.gateway.openai_errors import OpenAIError

LARGEST_BODY = 32 * 1024 * 1024
BODY_WITHIN_S = 60.0
ASSUMED_ANSWER = 256
"""Tokens that an answer is taken to have where the request sets no bound."""

_BYTES_A_TOKEN = 4
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_HEADER_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_PASSED_ON = (b"traceparent", b"tracestate", b"baggage")


@dataclass(frozen=True, slots=True)
class Asked:
    """``cost`` is the most tokens that it will use, as far as can be guessed from outside."""

    model: str
    cost: int
    body: bytes

    def named(self, model: str) -> bytes:
        """The body with another model's name in it; every other field keeps its bytes."""
        if model == self.model:
            return self.body
        try:
            fields = msgspec.json.decode(self.body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return json.dumps({**json.loads(self.body), "model": model}).encode()
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
        return msgspec.json.encode(fields)


class _Fields(msgspec.Struct):
    """What is read of a body; all else is skipped without making objects of it: 0.3 us, where json takes 4."""

    model: object = None
    max_tokens: object = None
    max_completion_tokens: object = None
    n: object = None


_decode = msgspec.json.Decoder(_Fields).decode


def parse(body: bytes) -> Asked:
    """Raises ``OpenAIError`` (400). Of a field that comes twice the last counts, as it does for the engine."""
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fields = _slowly(body)
    model = fields.model
    if not isinstance(model, str) or not model:
        raise OpenAIError(
            400, "the body must be an object with the string 'model'", param="model", code="missing_model"
        )
    bound = _count(fields.max_completion_tokens) or _count(fields.max_tokens) or ASSUMED_ANSWER
    return Asked(model, len(body) // _BYTES_A_TOKEN + bound * (_count(fields.n) or 1), body)


def _slowly(body: bytes) -> _Fields:
    """As Python's json reads it, which engines use: it lets NaN and halves of surrogate pairs pass."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise OpenAIError(400, f"the body is no JSON: {exc}", code="invalid_json") from exc
    if not isinstance(value, dict):
        return _Fields()
    return _Fields(*(value.get(name) for name in _Fields.__struct_fields__))


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Raises ``OpenAIError``: 413 if it is too large, as soon as that is known; 408 if it doesn't come."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > LARGEST_BODY:
            raise _too_large()
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        first: bytes = message.get("body", b"")
        if len(first) > LARGEST_BODY:
            raise _too_large()
        return first
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await _read_on(message.get("body", b""), message["type"], receive)
    except TimeoutError:
        raise OpenAIError(408, f"the body didn't come within {BODY_WITHIN_S:g} s", code="body_timeout") from None


async def _read_on(first: bytes, kind: str, receive: Receive) -> bytes:
    parts, size = [first], len(first)
    more = True
    while more:
        if kind == "http.disconnect":
            raise OpenAIError(400, "the request ended before its body was complete")
        message = await receive()
        kind, more = message["type"], message.get("more_body", message["type"] == "http.disconnect")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise _too_large()
    return b"".join(parts)


def _too_large() -> OpenAIError:
    return OpenAIError(
        413, f"the body is larger than {LARGEST_BODY} bytes: send less in one request", code="body_too_large"
    )


def forwarded(scope: Scope) -> tuple[str, bytes]:
    """The request's id, and the header lines that the engine gets: the client's key is not among them.

    While tracing is on, the engine's span is within ours, which is within the client's.
    """
    request_id, passed = b"", tracing.header_line()
    passed_on = _PASSED_ON[1:] if tracing.enabled() else _PASSED_ON
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value
        elif name in passed_on and _HEADER_VALUE.fullmatch(value):
            passed += b"%b: %b\r\n" % (name, value)
    request_id = request_id or new_id("req").encode()
    return request_id.decode(), b"Content-Type: application/json\r\nX-Request-Id: %b\r\n%b" % (request_id, passed)
