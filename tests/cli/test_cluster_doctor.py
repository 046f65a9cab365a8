"""The doctor for clusters, on real HTTP servers and a kubectl that answers what a cluster would."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from textmill_cli.cluster_doctor import examine_cluster
from textmill_cli.doctor import Finding
from textmill_cli.settings import SERVICES, CliSettings

ANSWERS: dict[str, tuple[int, Any]] = {
    "/readyz": (200, {"status": "ok", "checks": {"store": "ok", "bus": "ok"}}),
    "/v1/jobs?limit=1": (200, {"items": []}),
    "/v1/models": (200, {"data": [{"id": "zhouyi"}]}),
}


@pytest.fixture
def answers() -> dict[str, tuple[int, Any]]:
    return dict(ANSWERS)


@pytest.fixture
def url(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, {}))
            if self.path.startswith("/v1/") and self.headers["Authorization"] != "Bearer right":
                status = 401
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kubectl, store or broker of this machine."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("TEXTMILL_STORE_URL", "TEXTMILL_BUS_SERVERS"):
        monkeypatch.delenv(name, raising=False)


def settings_for(url: str, home: Path, token: str = "right", key: str = "right") -> CliSettings:
    return CliSettings(
        home=home, token=SecretStr(token), api_key=SecretStr(key), **{f"{name}_url": url for name in SERVICES}
    )  # type: ignore[arg-type]


def bad(found: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in found if not finding.ok}


def test_all_is_well(url: str, tmp_path: Path) -> None:
    found = examine_cluster(settings_for(url, tmp_path))
    assert bad(found) == {}
    assert "zhouyi" in next(f.detail for f in found if f.what == "models")


def test_wrong_keys_are_told_apart(url: str, tmp_path: Path) -> None:
    wrong = bad(examine_cluster(settings_for(url, tmp_path, token="old", key="old")))
    assert set(wrong) == {*(f"{name} token" for name in SERVICES), "models"}
    assert "TEXTMILL_CLI_TOKEN" in wrong["synth token"].mend
    assert "TEXTMILL_CLI_API_KEY" in wrong["models"].mend


def test_what_a_service_lacks_is_named(url: str, answers: dict[str, tuple[int, Any]], tmp_path: Path) -> None:
    answers["/readyz"] = (503, {"status": "not ready", "checks": {"store": "ok", "bus": "no Kafka broker"}})
    answers["/v1/models"] = (200, {"data": []})
    wrong = bad(examine_cluster(settings_for(url, tmp_path)))
    assert wrong["ingest"].detail == "bus: no Kafka broker"
    assert wrong["models"].detail == "none is served"


def test_a_service_that_is_away_and_a_store_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTMILL_STORE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TEXTMILL_BUS_SERVERS", "127.0.0.1:1")
    wrong = bad(examine_cluster(settings_for("http://127.0.0.1:1", tmp_path)))
    assert {*SERVICES, "object store", "broker"} <= set(wrong)
    assert "TEXTMILL_CLI_SYNTH_URL" in wrong["synth"].mend


def test_pods_volumes_and_secrets_by_kubectl(url: str, tmp_path: Path) -> None:
    pods = [
        _item("Pod", "good", phase="Running", conditions=[{"type": "Ready", "status": "True"}]),
        _item("Pod", "done", phase="Succeeded"),
        _item("Pod", "pending", phase="Pending",
              conditions=[{"type": "PodScheduled", "status": "False", "message": "Insufficient nvidia.com/gpu"}]),
        _item("Pod", "image", phase="Pending",
              containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}}]),
        _item("PersistentVolumeClaim", "models", phase="Pending"),
        _item("PersistentVolumeClaim", "work", phase="Bound"),
    ]  # fmt: skip
    (tmp_path / "pods.json").write_text(json.dumps({"items": pods}))
    (tmp_path / "secrets.json").write_text(json.dumps({"items": [_item("Secret", "textmill-store")]}))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\ncase "$*" in *secrets*) f=secrets;; *) f=pods;; esac\nwhile read -r line || [ -n "$line" ]; '
        f'do echo "$line"; done < {tmp_path}/$f.json\n'
    )
    kubectl.chmod(0o755)
    wrong = bad(examine_cluster(settings_for(url, tmp_path)))
    assert set(wrong) == {
        "pod pending", "pod image", "volume models", "secret textmill-tokens", "secret textmill-gateway",
    }  # fmt: skip
    assert "Insufficient nvidia.com/gpu" in wrong["pod pending"].detail
    assert wrong["pod image"].detail == "ImagePullBackOff: no such tag"
    kubectl.write_text("#!/bin/sh\necho 'connection refused' >&2\nexit 1\n")
    assert bad(examine_cluster(settings_for(url, tmp_path)))["kubectl"].detail == "connection refused"


def _item(kind: str, name: str, **status: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name}, "status": status}
