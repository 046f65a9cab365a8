"""Real servers on loopback for tests: the ingest app under uvicorn, and a web site to crawl."""

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from fastapi import FastAPI


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    port: int

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def post_json(self, path: str, content: object, **headers: str) -> Answer:
        return self.send("POST", path, json.dumps(content), Content_Type="application/json", **headers)

    def begin_and_hang_up(self, path: str, sent: bytes, promised: int) -> None:
        """Promise a body of ``promised`` bytes, send fewer and close the connection."""
        with socket.create_connection(("127.0.0.1", self.port)) as raw:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {promised}\r\n\r\n"
            raw.sendall(head.encode() + sent)
            time.sleep(0.2)


@contextmanager
def serving(app: FastAPI) -> Iterator[Client]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Client(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def wait_until(true: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@dataclass
class Site:
    """What the web server answers, by path, and the requests it saw: when, and how many at once by Host header."""

    port: int
    pages: dict[str, tuple[int, dict[str, str], bytes]]
    seen: list[tuple[float, str]]
    at_once: Counter[str] = field(default_factory=Counter)
    most_at_once: Counter[str] = field(default_factory=Counter)
    work_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, body: bytes, content_type: str = "text/html", status: int = 200, **headers: str) -> str:
        self.pages[path] = (status, {"Content-Type": content_type, **headers}, body)
        return self.url(path)

    @property
    def paths(self) -> list[str]:
        return [path for _, path in self.seen]


@contextmanager
def a_site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["Host"]
            with site.lock:
                site.at_once[host] += 1
                site.most_at_once[host] = max(site.most_at_once[host], site.at_once[host])
                site.seen.append((time.monotonic(), self.path))
            time.sleep(site.work_s)
            status, headers, body = site.pages.get(self.path, (404, {}, b"gone"))
            # The count goes down before the client can have the answer and ask again.
            with site.lock:
                site.at_once[host] -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(server.server_address[1], {}, [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
