"""A gateway without vLLM follows the models of a real HTTP server as they come and go."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from textmill.errors import DependencyDown
from textmill_inference.rollout.directory import EngineDirectory, listed_models


class Served:
    """An engine server: lists ``names``, and answers for them while ``status`` is 200."""

    def __init__(self) -> None:
        self.names = ["base"]
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"data": [{"id": name} for name in outer.names]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer({})

            def _answer(self, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@pytest.fixture
def directory(server: Served) -> Iterator[EngineDirectory]:
    """Asked by the tests alone: its own thread sleeps."""
    found = EngineDirectory(server.url + "/", every_s=3600)
    found.refresh()
    yield found
    found.stop()


def test_models_come_and_go_as_the_server_lists_them(server: Served, directory: EngineDirectory, waits) -> None:
    assert list(directory.engines()) == ["base"]
    server.names = ["base", "tuned"]
    directory.refresh()
    waits(lambda: all(engine.ready for engine in directory.engines().values()), "both to answer")
    directory.check()
    server.names = ["tuned"]
    directory.refresh()
    assert list(directory.routes()) == ["tuned"]


def test_a_name_that_stays_keeps_its_upstream_and_its_count(server: Served, directory: EngineDirectory) -> None:
    before = directory.routes()["base"].choose(0.5)
    before.in_flight = 3
    server.names = ["another", "base"]
    directory.refresh()
    assert directory.routes()["base"].choose(0.5) is before


def test_a_server_that_is_down_loses_no_name_but_isn_t_ready(server: Served, directory: EngineDirectory, waits) -> None:
    waits(lambda: directory.engines()["base"].ready, "it to answer")
    server.status = 500
    directory.engines()["base"].suspect()
    directory.refresh()
    waits(lambda: not directory.engines()["base"].ready, "the loss to be seen")
    assert list(directory.engines()) == ["base"]
    with pytest.raises(DependencyDown, match="500"):
        directory.check()


def test_what_lists_no_models_is_named(server: Served) -> None:
    server.close()
    with pytest.raises(DependencyDown, match=server.url):
        listed_models(server.url, timeout_s=2)
