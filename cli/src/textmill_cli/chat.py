"""One question to one or more served models, answers streamed side by side. Any OpenAI-compatible gateway will do."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import urllib3
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from textmill.errors import DependencyDown, NotFound
from textmill_cli.settings import CliSettings


@dataclass
class Conversation:
    """The turns with one model."""

    model: str
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: str = ""
    error: str = ""


def served_models(settings: CliSettings) -> list[str]:
    """The models that the gateway answers for. Raises ``DependencyDown``."""
    answer = _call(settings, "GET", "/v1/models", None)
    return [model["id"] for model in json.loads(answer.data)["data"]]


def pick(served: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted models, or all. Raises ``NotFound`` for one that isn't served."""
    for model in wanted:
        if model not in served:
            raise NotFound(f"no model {model!r} is served; there are: {', '.join(served) or 'none'}")
    return list(wanted or served)


def ask_all(settings: CliSettings, conversations: Sequence[Conversation], question: str, console: Console) -> None:
    """Put the question to all at once and show the answers as they come."""
    threads = [threading.Thread(target=_answer, args=(settings, c, question), daemon=True) for c in conversations]
    for thread in threads:
        thread.start()
    with Live(_columns(conversations), console=console, refresh_per_second=12) as live:
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.08) if threads[0].is_alive() else threads[-1].join(0.08)
            live.update(_columns(conversations))
        live.update(_columns(conversations))


def _columns(conversations: Sequence[Conversation]) -> Columns:
    return Columns([Panel(c.error or c.answer or "…", title=c.model, width=58) for c in conversations])


def _answer(settings: CliSettings, conversation: Conversation, question: str) -> None:
    conversation.answer, conversation.error = "", ""
    conversation.messages.append({"role": "user", "content": question})
    body = {
        "model": conversation.model,
        "messages": conversation.messages,
        "temperature": 0,
        "max_tokens": 200,
        "stream": True,
    }
    try:
        for piece in _pieces(settings, body):
            conversation.answer += piece
    except DependencyDown as exc:
        conversation.error = str(exc)
    conversation.messages.append({"role": "assistant", "content": conversation.answer})


def _pieces(settings: CliSettings, body: dict[str, object]) -> Iterator[str]:
    response = _call(settings, "POST", "/v1/chat/completions", body)
    rest = b""
    for chunk in response.stream(512):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                choices = json.loads(line[6:]).get("choices") or [{}]
                yield choices[0].get("delta", {}).get("content") or ""


def _call(settings: CliSettings, method: str, path: str, body: dict[str, object] | None) -> urllib3.BaseHTTPResponse:
    url = settings.urls()["inference"] + path
    key = settings.api_key.get_secret_value()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = json.dumps(body).encode() if body is not None else None
    try:
        response = urllib3.request(
            method, url, body=data, headers=headers, preload_content=body is None, retries=False, timeout=60
        )
    except urllib3.exceptions.HTTPError as exc:
        raise DependencyDown(f"the gateway at {url} can't be reached; start it with 'textmill up'") from exc
    if response.status != 200:
        raise DependencyDown(f"the gateway says {response.status}: {response.data.decode(errors='replace')[:300]}")
    return response
