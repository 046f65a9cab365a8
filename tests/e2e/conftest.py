"""One installation and one tuned model for all end-to-end tests: starting an engine takes a minute."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector import Collector, collecting

sys.path.insert(0, str(Path(__file__).parent))
import prometheus_server
from installation import Installation, Tuned
from recipes import small_recipe, write_recipe


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the installation's spans go."""
    with collecting() as made:
        yield made


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Installation]:
    """All services and servers, up and ready, with tracing on."""
    installed = Installation(tmp_path_factory.mktemp("home"), collector.environment)
    started = installed.textmill("up", "--detach")
    try:
        assert started.returncode == 0, started.stderr + started.stdout
        yield installed
    finally:
        stopped = installed.textmill("down")
        assert "stopped" in stopped.stdout


@pytest.fixture(scope="session", autouse=True)
def watching(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[prometheus_server.PrometheusServer | None]:
    """A Prometheus that sees the main job from its beginning; None where there is none to be had."""
    targets = prometheus_server.targets_of(dict(installation.settings.urls()))
    try:
        server = prometheus_server.start(tmp_path_factory.mktemp("prometheus"), targets)
    except pytest.skip.Exception:
        yield None
        return
    try:
        yield server
    finally:
        server.child.stop(10)


@pytest.fixture(scope="session")
def tuned(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    recipe = small_recipe("en", ["07-*.md", "08-*.md"])
    return Tuned(recipe, installation.run_recipe(write_recipe(tmp_path_factory.mktemp("recipe"), recipe)))
