"""An async client for any OpenAI-compatible chat endpoint, and the one owner of retries.

A call's deadline counts from its admission, over everything: a server that drips a byte a second runs into it, and a
call that queues doesn't. Waiting between tries holds no permit. Knows nothing of passages, checks or the ledger.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol

import aiohttp
from pydantic import BaseModel, JsonValue, SecretStr, ValidationError

from textmill.contracts.base import utc_now
from textmill.contracts.datasets import Message
from textmill.errors import DependencyDown, JobFailed, TextmillError
from textmill_synth.admission import Admission

FaultKind = Literal[
    "llm_timeout", "llm_rate_limited", "llm_server_error", "llm_connection", "llm_bad_response", "llm_bad_request"
]
Schema = Mapping[str, JsonValue]
MAX_RESPONSE_BYTES = 8 * 1024 * 1024
LONGEST_HOLD_S = 300.0
"""A ``Retry-After`` beyond this sends the job back to the queue: it isn't worth holding a worker for."""


class CallFailed(TextmillError):
    """One call got no usable answer in all its tries; the others may. Caught by ``generation``: a dead letter."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


@dataclass(frozen=True)
class ChatRequest:
    """One call, and nothing that doesn't change its answer. ``sample`` tells draws of one prompt apart."""

    model: str
    messages: Sequence[Message]
    temperature: float
    max_tokens: int
    schema: Schema | None = None
    sample: int = 0

    @property
    def key(self) -> str:
        """SHA-256 in hex of model, parameters, rendered prompt, schema and sample index."""
        return hashlib.sha256(json.dumps([self.body(), self.sample], sort_keys=True).encode()).hexdigest()

    def body(self) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.sample:
            body["seed"] = self.sample
        if self.schema is not None:
            schema: dict[str, JsonValue] = {"name": "sample", "schema": dict(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


@dataclass(frozen=True)
class Completion:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Fault:
    """A try that brought no answer. ``retry_after_s`` is what the endpoint asked for."""

    kind: FaultKind
    message: str
    retry_after_s: float | None = None
    endpoint_down: bool = False


class Llm(Protocol):
    async def complete(self, request: ChatRequest) -> Completion:
        """Raises ``CallFailed`` for this call alone, ``DependencyDown`` when the endpoint serves nobody."""
        ...


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter. Being told to wait (429) isn't failing, so it has its own bound."""

    max_tries: int = 5
    max_rate_limited: int = 15
    first_delay_s: float = 0.5

    def delay_s(self, tries: int) -> float:
        """Before the next try: doubles up to 64 times the first delay, less a random half of itself."""
        ceiling = self.first_delay_s * 2.0 ** min(tries - 1, 6)
        return random.uniform(ceiling / 2, ceiling)


def open_session() -> aiohttp.ClientSession:
    """A session for ``ChatClient``: no total timeout (each call has its deadline), no bound on connections."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
    # Most servers drop an idle connection after 5 s; ours must go first, or a call meets a closed one.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
    return aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20)


class ChatClient:
    """Calls ``<url>/chat/completions``. ``observe`` is told the outcome of each try: "ok" or the fault's kind."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        api_key: SecretStr | None,
        admission: Admission,
        deadline_s: float,
        retry: RetryPolicy,
        observe: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + "/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}
        self._admission = admission
        self._deadline_s = deadline_s
        self._retry = retry
        self._observe = observe
        self._successes = 0

    async def complete(self, request: ChatRequest) -> Completion:
        body = json.dumps(request.body(), ensure_ascii=False).encode()
        successes_at_first_fault: int | None = None
        tries = rate_limited = 0
        while True:
            async with self._admission.permit():
                outcome = await self._try(body)
            self._observe(outcome.kind if isinstance(outcome, Fault) else "ok")
            if isinstance(outcome, Completion):
                self._successes += 1
                return outcome
            if successes_at_first_fault is None:
                successes_at_first_fault = self._successes
            if outcome.kind == "llm_rate_limited":
                rate_limited += 1
            else:
                tries += 1
            alone = self._successes == successes_at_first_fault
            self._give_up_or_hold(outcome, tries, rate_limited, alone)
            if outcome.retry_after_s is None:
                await asyncio.sleep(self._retry.delay_s(tries + rate_limited))

    def _give_up_or_hold(self, fault: Fault, tries: int, rate_limited: int, alone: bool) -> None:
        """Raise when there is no use in another try; else make all calls wait as long as the endpoint asked.

        ``alone`` says that no call at all succeeded since this one first failed. Faults that no prompt can cause then
        mean that the endpoint is down, while a prompt that times out or gets a 500 must not stop the whole job.
        """
        if fault.kind == "llm_bad_request":
            raise CallFailed(fault.kind, fault.message)
        if fault.retry_after_s is not None and fault.retry_after_s > LONGEST_HOLD_S:
            raise DependencyDown(f"{fault.message}; it asks to wait {fault.retry_after_s:.0f} s", fault.retry_after_s)
        if tries >= self._retry.max_tries or rate_limited >= self._retry.max_rate_limited:
            if fault.endpoint_down and alone:
                raise DependencyDown(f"the LLM endpoint answers no call: {fault.message}")
            raise CallFailed(fault.kind, f"{fault.message} (given up after {tries + rate_limited} tries)")
        if fault.retry_after_s is not None:
            self._admission.hold(fault.retry_after_s)

    async def _try(self, body: bytes) -> Completion | Fault:
        headers = {"Content-Type": "application/json", **self._headers}
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                    data = await _read(response)
        except aiohttp.ClientError as exc:  # before TimeoutError: a connect timeout is both
            message = f"{self._url} can't be reached: {type(exc).__name__}: {exc}"
            return Fault("llm_connection", message, endpoint_down=True)
        except TimeoutError:
            return Fault("llm_timeout", f"no whole answer within {self._deadline_s:g} s from {self._url}")
        if response.status == 200:
            return _completion(data)
        return _fault(response.status, response.headers, data, self._url)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to the first byte past ``MAX_RESPONSE_BYTES``."""
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


def _completion(data: bytes) -> Completion | Fault:
    try:
        reply = _Reply.model_validate_json(data)
        choice = reply.choices[0]
    except (ValidationError, IndexError):
        return Fault("llm_bad_response", f"status 200 without a chat completion in {len(data)} bytes")
    usage = reply.usage or _Usage()
    text, reason = choice.message.content or "", choice.finish_reason or "stop"
    return Completion(text, reason, usage.prompt_tokens, usage.completion_tokens)


def _fault(status: int, headers: Mapping[str, str], data: bytes, url: str) -> Fault:
    """Raises ``JobFailed`` for what no retry and no other prompt can change: a wrong key, model or address."""
    message = f"{url} answered {status}"
    if status in (401, 403):
        raise JobFailed(f"{message}: check the key in TEXTMILL_SYNTH_LLM_API_KEY")
    if status == 404:
        raise JobFailed(f"{message}: no such model or path, ask GET /v1/models of the endpoint: {_excerpt(data)}")
    retry_after_s = _retry_after_s(headers.get("Retry-After"))
    if status == 429:
        return Fault("llm_rate_limited", message, retry_after_s, endpoint_down=True)
    if status in (408, 409, 425) or status >= 500:
        return Fault("llm_server_error", message, retry_after_s, endpoint_down=status in (502, 503, 504))
    return Fault("llm_bad_request", f"{message}: {_excerpt(data)}")


def _excerpt(data: bytes) -> str:
    return data[:200].decode("utf-8", errors="replace")


def _retry_after_s(value: str | None) -> float | None:
    """Seconds or an HTTP date (RFC 9110, 10.2.3); None for anything else."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - utc_now()).total_seconds())
    except (ValueError, TypeError):
        return None
