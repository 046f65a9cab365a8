"""What the control side asks of a vLLM server: does it answer, is it healthy, load these weights. Blocking calls.

Uses vLLM's admin routes (``/pause``, ``/collective_rpc``, ``/reset_prefix_cache``, ``/resume``), which exist with
``VLLM_SERVER_DEV_MODE=1`` and ask for no key: such a server must listen on the loopback address alone. So do those for
adapters, which exist with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``.
"""

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pydantic import JsonValue

from textmill.errors import DependencyDown, TextmillError


class EngineApi:
    """``name`` is the model name that the server knows."""

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        self._connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._name = parts.hostname or "127.0.0.1", name
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")

    def answers(self, timeout_s: float = 60.0) -> bool:
        """True if the model generates a token. False if the server says no; raises ``DependencyDown`` if none does."""
        body = {"model": self._name, "prompt": "1", "max_tokens": 1, "temperature": 0}
        return self._call("POST", "/v1/completions", body, timeout_s) == 200

    def healthy(self, timeout_s: float = 10.0) -> bool:
        """False if the server says that its engine is dead. Raises ``DependencyDown`` if nothing answers in time."""
        return self._call("GET", "/health", None, timeout_s) == 200

    def context_tokens(self) -> int | None:
        """The longest conversation that it takes, in tokens; None if it doesn't say. Raises as ``render``.

        For an adapter vLLM tells it of the model below.
        """
        data = cast(list[dict[str, JsonValue]], self._json("GET", "/v1/models", None).get("data", []))
        models = {str(model.get("id")): model for model in data}
        own = models.get(self._name, {})
        for model in (own, models.get(str(own.get("parent")), {})):
            if isinstance(longest := model.get("max_model_len"), int):
                return longest
        return None

    def render(
        self, messages: Sequence[Mapping[str, JsonValue]], tools: Sequence[Mapping[str, JsonValue]]
    ) -> list[int]:
        """The prompt's token ids that a chat request with these messages gets.

        Raises:
            TextmillError: the server refuses.
            DependencyDown: nothing answers.
        """
        body = {"model": self._name, "messages": messages, "add_generation_prompt": True, "tools": tools or None}
        return cast(list[int], self._json("POST", "/tokenize", body)["tokens"])

    def logprobs(self, token_ids: Sequence[int], top: int) -> list[dict[int, float]]:
        """At each token but the first: log-probabilities of the ``top`` likeliest and of the token that stands there.

        Raises:
            as ``render``.
        """
        body = {"model": self._name, "prompt": token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top}
        choices = cast(list[dict[str, JsonValue]], self._json("POST", "/v1/completions", body)["choices"])
        places = cast(list[dict[str, dict[str, float]]], choices[0]["prompt_logprobs"])
        return [{int(token_id): seen["logprob"] for token_id, seen in place.items()} for place in places[1:]]

    def pause(self, drain_s: float) -> None:
        """Let the requests in flight end; later ones wait for ``resume``. Returns when none is running.

        Raises:
            TextmillError: the server refused, or they didn't end within ``drain_s``. ``resume`` makes it as before.
        """
        self._must("/pause?mode=wait", None, drain_s)

    def resume(self) -> None:
        """Raises as ``pause``."""
        self._must("/resume", None, 60.0)

    def reload(self, folder: Path) -> None:
        """Swap the weights of a paused engine in place, and resume.

        The prefix cache holds keys and values of the old weights, so it is emptied before anything runs again.

        Raises:
            TextmillError: the server refused a step. What weights it then has is unknown: restart it.
        """
        self._must(
            "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}, timeout_s=600.0
        )
        self._must("/reset_prefix_cache", None, 60.0)
        self.resume()

    def load_adapter(self, model: str, folder: Path) -> None:
        """Answer to ``model`` with the LoRA adapter in ``folder`` too. Raises ``TextmillError`` with vLLM's reason."""
        body: dict[str, object] = {"lora_name": model, "lora_path": str(folder)}
        status, data = self._exchange("POST", "/v1/load_lora_adapter", body, timeout_s=300.0)
        if status != 200:
            raise TextmillError(f"the engine doesn't load the adapter {model!r} ({status}): {_reason(data)}")

    def unload_adapter(self, model: str) -> None:
        """Raises ``TextmillError``. Answers under way go on."""
        self._must("/v1/unload_lora_adapter", {"lora_name": model}, 60.0)

    def _must(self, path: str, body: dict[str, object] | None, timeout_s: float) -> None:
        status = self._call("POST", path, body, timeout_s)
        if status != 200:
            raise TextmillError(f"the engine answered {status} to POST {path}: is VLLM_SERVER_DEV_MODE=1 set?")

    def _json(self, method: str, path: str, body: dict[str, object] | None) -> dict[str, JsonValue]:
        status, data = self._exchange(method, path, body, timeout_s=120.0)
        if status != 200:
            raise TextmillError(f"the engine answered {status} to {method} {path}")
        try:
            return cast(dict[str, JsonValue], json.loads(data))
        except ValueError as exc:
            raise TextmillError(f"the engine's answer to {method} {path} is no JSON") from exc

    def _call(self, method: str, path: str, body: dict[str, object] | None, timeout_s: float) -> int:
        return self._exchange(method, path, body, timeout_s)[0]

    def _exchange(self, method: str, path: str, body: dict[str, object] | None, timeout_s: float) -> tuple[int, bytes]:
        connection = self._connect(self._host, self._port, timeout=timeout_s)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._prefix + path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise DependencyDown(f"engine at {self._host}:{self._port}: {type(exc).__name__}: {exc}") from exc
        finally:
            connection.close()


def _reason(data: bytes) -> str:
    """The message of an OpenAI error. Without one the route wasn't there at all."""
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return (
            f"{data[:200].decode(errors='replace')!r}. Was it started with room for adapters "
            "(TEXTMILL_INFERENCE_ENGINE_MAX_ADAPTERS)?"
        )
