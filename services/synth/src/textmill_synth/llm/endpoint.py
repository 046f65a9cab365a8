"""One try of a call over HTTP, at any OpenAI-compatible endpoint. Retries nothing, waits for no permit.

The deadline of a try starts when it is sent and covers all up to the last byte: a server that drips a byte a second
runs into it.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, ValidationError

from textmill import tracing
from textmill.contracts.base import utc_now
from textmill.errors import JobFailed
from textmill.http1 import ConnectFailed, ConnectionLost, HttpPool
from textmill_synth.llm.request import ChatRequest, Completion, Fault

MAX_RESPONSE_BYTES = 8 * 1024 * 1024


class Endpoint(Protocol):
    """Where calls are sent."""

    @property
    def url(self) -> str: ...

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        """One try. Raises ``JobFailed`` for what no retry and no other prompt can change."""
        ...


class HttpEndpoint:
    """Calls ``<url>/chat/completions``. ``model`` replaces the request's; ``key_setting`` is where to mend a key."""

    def __init__(
        self,
        url: str,
        api_key: SecretStr | None = None,
        model: str = "",
        key_setting: str = "TEXTMILL_SYNTH_LLM_API_KEY",
    ) -> None:
        self.url = url.rstrip("/")
        self._post_url = f"{self.url}/chat/completions"
        self._path = urlsplit(self._post_url).path
        self._pool = HttpPool(self.url)
        headers = ["Content-Type: application/json", "Accept: application/json", "Accept-Encoding: identity"]
        if api_key is not None and api_key.get_secret_value():
            headers.append(f"Authorization: Bearer {api_key.get_secret_value()}")
        self._headers = b"".join(header.encode() + b"\r\n" for header in headers)
        self._model = model
        self._key_setting = key_setting

    def close(self) -> None:
        self._pool.close()

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        asked = request if self._model in ("", request.model) else replace(request, model=self._model)
        about = {"gen_ai.operation.name": "chat", "gen_ai.request.model": asked.model, "server.address": self.url}
        with tracing.span(f"chat {asked.model}", "client", attributes=about):
            answer = await self._ask(asked, deadline_s)
            _note(answer)
            return answer

    async def _ask(self, asked: ChatRequest, deadline_s: float) -> Completion | Fault:
        headers = self._headers + tracing.header_line()
        try:
            async with asyncio.timeout(deadline_s):
                response = await self._pool.post(self._path, headers, asked.payload, MAX_RESPONSE_BYTES)
        except (ConnectFailed, ConnectionLost) as exc:
            message = f"{self._post_url} can't be reached: {exc}"
            return Fault("llm_connection", message, endpoint_down=True, sent=isinstance(exc, ConnectionLost))
        except TimeoutError:
            return Fault("llm_timeout", f"no whole answer within {deadline_s:g} s from {self._post_url}")
        if len(response.body) > MAX_RESPONSE_BYTES:
            return Fault("llm_bad_response", f"an answer of more than {MAX_RESPONSE_BYTES} bytes")
        if response.status == 200:
            return _completion(response.body, asked.model, self.url)
        return self._fault(response.status, response.headers, response.body)

    def _fault(self, status: int, headers: Mapping[str, str], data: bytes) -> Fault:
        message = f"{self._post_url} answered {status}"
        if status in (401, 403):
            raise JobFailed(f"{message}: check the key in {self._key_setting}")
        if status == 404:
            raise JobFailed(f"{message}: no such model or path, ask GET /v1/models of the endpoint: {_excerpt(data)}")
        retry_after_s = _retry_after_s(headers.get("retry-after"))
        if status == 429:
            return Fault("llm_rate_limited", message, retry_after_s)
        if status in (408, 409, 425) or status >= 500:
            return Fault("llm_server_error", message, retry_after_s, endpoint_down=status in (502, 503, 504))
        return Fault("llm_bad_request", f"{message}: {_excerpt(data)}")


class _ReplyMessage(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Reply(BaseModel):
    """The part of OpenAI's chat completion object that is used."""

    choices: list[_Choice]
    usage: _Usage | None = None


def _completion(data: bytes, model: str, url: str) -> Completion | Fault:
    try:
        reply = _Reply.model_validate_json(data)
        choice = reply.choices[0]
    except (ValidationError, IndexError):
        return Fault("llm_bad_response", f"status 200 without a chat completion in {len(data)} bytes")
    usage = reply.usage or _Usage()
    text, reason = choice.message.content or "", choice.finish_reason or "stop"
    return Completion(text, reason, usage.prompt_tokens, usage.completion_tokens, model, url)


def _note(answer: Completion | Fault) -> None:
    if isinstance(answer, Fault):
        tracing.fail(answer.kind)
    else:
        used = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}
        tracing.note({f"gen_ai.usage.{name}": tokens for name, tokens in used.items()})


def _excerpt(data: bytes) -> str:
    return data[:200].decode("utf-8", errors="replace")


def _retry_after_s(value: str | None) -> float | None:
    """Seconds or an HTTP date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - utc_now()).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
