"""A gateway in front of a service that deploys: what is about deployments goes there and comes back as it is."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from textmill.http import create_app
from textmill.jobs import Jobs
from textmill.store import MemoryStore
from textmill_inference.rollout.forward import engine_router, forwarding_router
from textmill_inference.settings import InferenceSettings


class Echo(BaseHTTPRequestHandler):
    """Answers 202 with what it was asked."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        heard = {"method": self.command, "path": self.path, "body": body}
        heard |= {name: self.headers[name] for name in ("Authorization", "Idempotency-Key", "Cookie")}
        data = json.dumps(heard).encode()
        self.send_response(202)
        for name, value in (("Location", "/v1/jobs/job_1"), ("Content-Length", str(len(data))), ("X-Other", "1")):
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def behind() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def in_front_of(url: str) -> TestClient:
    app: FastAPI = create_app("inference", jobs=Jobs(MemoryStore()), kinds=("deploy",), checks={})
    app.include_router(engine_router())
    app.include_router(forwarding_router(url))
    return TestClient(app)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/deployments"),
        ("POST", "/v1/deployments"),
        ("PATCH", "/v1/deployments/tuned?x=1"),
        ("POST", "/v1/deployments/tuned/promote"),
        ("DELETE", "/v1/deployments/tuned"),
    ],
)
def test_it_carries_there_and_back(behind: str, method: str, path: str) -> None:
    headers = {"Authorization": "Bearer t", "Idempotency-Key": "k", "Cookie": "private"}
    answer = in_front_of(behind + "/").request(
        method, path, headers=headers, content=b"{}" if method == "POST" else b""
    )
    heard = answer.json()
    assert answer.status_code == 202
    assert (heard["method"], heard["path"]) == (method, path)
    assert (heard["Authorization"], heard["Idempotency-Key"], heard["Cookie"]) == ("Bearer t", "k", None)
    assert answer.headers["location"] == "/v1/jobs/job_1"
    assert "x-other" not in answer.headers


def test_a_service_that_is_gone_is_named_with_503() -> None:
    answer = in_front_of("http://127.0.0.1:1").get("/v1/deployments")
    assert answer.status_code == 503
    assert "http://127.0.0.1:1" in answer.json()["detail"]


def test_it_looks_healthy_to_a_gateway_in_front(behind: str) -> None:
    assert in_front_of(behind).get("/health").status_code == 200


def test_the_star_is_no_model_but_what_is_behind() -> None:
    settings = InferenceSettings(engines={"*": "http://engine:8100", "own": "http://own:8000"})
    assert settings.behind == "http://engine:8100"
    assert settings.replicas() == {"own": ("http://own:8000",)}
    assert InferenceSettings().behind == ""
