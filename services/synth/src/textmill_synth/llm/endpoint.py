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

import aiohttp
from pydantic import BaseModel, SecretStr, ValidationError
from yarl import URL

from textmill.contracts.base import utc_now
from textmill.errors import JobFailed
from textmill_synth.llm.request import ChatRequest, Completion, Fault

MAX_RESPONSE_BYTES = 8 * 1024 * 1024


class Endpoint(Protocol):
    """Where calls are sent."""

    @property
    def url(self) -> str: ...

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        """One try. Raises ``JobFailed`` for what no retry and no other prompt can change."""
        ...


def open_session() -> aiohttp.ClientSession:
    """A session for ``HttpEndpoint``: no total timeout (each try has its deadline), no bound on connections."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    # Most servers drop an idle connection after 5 s; ours must go first, or a call meets a closed one.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
    return aiohttp.ClientSession(
        timeout=timeout, connector=connector, read_bufsize=1 << 20, cookie_jar=aiohttp.DummyCookieJar()
    )


class HttpEndpoint:
    """Calls ``<url>/chat/completions``. ``model`` replaces the request's; ``key_setting`` is where to mend a key."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        api_key: SecretStr | None = None,
        model: str = "",
        key_setting: str = "TEXTMILL_SYNTH_LLM_API_KEY",
    ) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._post_url = URL(f"{self.url}/chat/completions")
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None and api_key.get_secret_value():
            self._headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
        self._model = model
        self._key_setting = key_setting

    async def attempt(self, request: ChatRequest, deadline_s: float) -> Completion | Fault:
        asked = request if self._model in ("", request.model) else replace(request, model=self._model)
        try:
            async with asyncio.timeout(deadline_s):
                async with self._session.post(
                    self._post_url, data=asked.payload, headers=self._headers, allow_redirects=False
                ) as response:
                    data = await _read(response)
        except aiohttp.ClientError as exc:  # before TimeoutError: a connect timeout is both
            message = f"{self._post_url} can't be reached: {type(exc).__name__}: {exc}"
            unsent = isinstance(exc, aiohttp.ClientConnectorError)
            return Fault("llm_connection", message, endpoint_down=True, sent=not unsent)
        except TimeoutError:
            return Fault("llm_timeout", f"no whole answer within {deadline_s:g} s from {self._post_url}")
        if len(data) > MAX_RESPONSE_BYTES:
            return Fault("llm_bad_response", f"an answer of more than {MAX_RESPONSE_BYTES} bytes")
        if response.status == 200:
            return _completion(data, asked.model, self.url)
        return self._fault(response.status, response.headers, data)

    def _fault(self, status: int, headers: Mapping[str, str], data: bytes) -> Fault:
        message = f"{self._post_url} answered {status}"
        if status in (401, 403):
            raise JobFailed(f"{message}: check the key in {self._key_setting}")
        if status == 404:
            raise JobFailed(f"{message}: no such model or path, ask GET /v1/models of the endpoint: {_excerpt(data)}")
        retry_after_s = _retry_after_s(headers.get("Retry-After"))
        if status == 429:
            return Fault("llm_rate_limited", message, retry_after_s)
        if status in (408, 409, 425) or status >= 500:
            return Fault("llm_server_error", message, retry_after_s, endpoint_down=status in (502, 503, 504))
        return Fault("llm_bad_request", f"{message}: {_excerpt(data)}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to the first chunk past ``MAX_RESPONSE_BYTES``."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_RESPONSE_BYTES:
            break
    return bytes(data)


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
