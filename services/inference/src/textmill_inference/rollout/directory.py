"""The engines behind one URL that lists its models: a vLLM server with adapters, or an inference service with vLLM.

A gateway without vLLM needs no list of names: it asks for them, and follows as models are deployed and dropped there.
Starts, swaps and stops nothing there.
"""

import http.client
import json
import logging
import threading
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from textmill.errors import DependencyDown
from textmill_inference.engine.port import AttachedEngine, Engine
from textmill_inference.rollout.routes import Route, Upstream

log = logging.getLogger(__name__)
Attach = Callable[[str, str], Engine]


class EngineDirectory:
    """Asks ``url`` for its models every ``every_s`` seconds, from a thread of its own, until ``stop``."""

    def __init__(self, url: str, every_s: float = 2.0, attach: Attach = AttachedEngine) -> None:
        self._url = url.rstrip("/")
        self._every_s = every_s
        self._attach = attach
        self._engines: Mapping[str, Engine] = {}
        self._routes: Mapping[str, Route] = {}
        self._trouble = "not asked yet"
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="engine-directory", daemon=True).start()

    def engines(self) -> Mapping[str, Engine]:
        """A snapshot, never changed afterwards."""
        return self._engines

    def routes(self) -> Mapping[str, Route]:
        """What the gateway reads: a snapshot, never changed afterwards. A name that stays keeps its route."""
        return self._routes

    def check(self) -> None:
        """Raises ``DependencyDown`` while no model is known that answers."""
        if any(engine.ready for engine in self._engines.values()):
            return
        why = self._trouble or ("; ".join(e.trouble for e in self._engines.values()) or "it lists no model")
        raise DependencyDown(f"no model answers at {self._url}: {why}")

    def stop(self) -> None:
        self._stop.set()
        for engine in self._engines.values():
            engine.stop()

    def refresh(self) -> None:
        """Ask once. While nothing answers, the engines known so far stay: each tells by itself whether it is ready."""
        try:
            names = listed_models(self._url)
        except DependencyDown as exc:
            self._trouble = str(exc)
            return
        self._trouble = ""
        known = self._engines
        gone = [engine for name, engine in known.items() if name not in names]
        if gone or names - known.keys():
            log.info("models behind the engine url", extra={"models": sorted(names), "engine_url": self._url})
        engines = {name: known.get(name) or self._attach(name, self._url) for name in sorted(names)}
        self._engines, self._routes = engines, {name: self._route(engine) for name, engine in engines.items()}
        for engine in gone:
            engine.stop()

    def _route(self, engine: Engine) -> Route:
        """The gateway counts what is under way on the upstream: one engine, one upstream."""
        return self._routes.get(engine.name) or Route([Upstream(engine, engine.name, engine.name, engine.name)])

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(self._every_s)


def listed_models(url: str, timeout_s: float = 10.0) -> frozenset[str]:
    """The names that ``GET /v1/models`` lists. Raises ``DependencyDown`` for any other answer, or none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/v1/models")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise DependencyDown(f"{url} answered {response.status} to GET /v1/models")
        return frozenset(str(model["id"]) for model in json.loads(body)["data"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as exc:
        raise DependencyDown(f"{url} lists no models: {type(exc).__name__}: {exc}") from exc
    finally:
        connection.close()
