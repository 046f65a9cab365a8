"""What all tests share: real SeaweedFS and Tansu, started once a session; each test has a bucket of its own."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.collector import Collector, collecting
from tests.ports import any_free

from textmill import tracing
from textmill.bus import KafkaBus
from textmill.errors import DependencyDown
from textmill.store import S3Store
from textmill_cli.local import servers
from textmill_cli.local.wait import wait_until

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side on few cores: torch's threads must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same examples each time, however long they take. To look for others: pytest --hypothesis-profile=explore
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real SeaweedFS on loopback."""
    folder = tmp_path_factory.mktemp("s3")
    port = any_free()
    (folder / "ports.json").write_text(json.dumps({name: any_free() for name in servers.STORE_PORTS[1:]}))
    server = servers.object_store(folder, port, folder / "weed.log")
    server.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _reachable(lambda: open_store(url, "probe-bucket").ensure_bucket()), 120, "SeaweedFS")
        yield url
    finally:
        server.kill()  # it would take ten seconds over its farewell, and nothing here is kept


@pytest.fixture(scope="session")
def kafka_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Tansu broker on loopback."""
    port = any_free()
    server = servers.broker(port, tmp_path_factory.mktemp("kafka") / "tansu.log")
    server.start()
    address = f"127.0.0.1:{port}"
    try:
        wait_until(lambda: _reachable(KafkaBus(address).check), 60, "Tansu")
        yield address
    finally:
        server.stop(5)


@pytest.fixture
def s3_store(s3_url: str) -> S3Store:
    """A bucket that no other test has seen."""
    store = open_store(s3_url, f"t-{uuid.uuid4().hex[:20]}")
    store.ensure_bucket()
    return store


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Tracing is on in this process, as the service "test"; ``tracing.stop()`` sends what there is."""
    with collecting() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        tracing.configure("test")
        yield made
        tracing.stop()


def open_store(url: str, bucket: str) -> S3Store:
    return S3Store(url, servers.ACCESS_KEY, servers.SECRET_KEY, bucket)


def _reachable(call: Callable[[], object]) -> bool:
    try:
        call()
    except DependencyDown:
        return False
    return True
