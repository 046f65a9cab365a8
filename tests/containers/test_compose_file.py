"""The compose files without an engine: their schema, and what they promise of images, limits, ports and secrets."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from container_engine import ROOT, make_env
from container_images import IMAGES

MAIN, GPU, MINIO, TRACING = "docker-compose.yml", "compose.gpu.yml", "compose.minio.yml", "compose.tracing.yml"
FILES = (MAIN, GPU, MINIO, TRACING, "tests/containers/compose.override.yml", "tests/containers/compose.llm.yml")
PUBLISHED = {"gateway", "prometheus", "grafana"}
OURS = {"ingest", "synth", "trainer", "engine", "gateway", "demo-model", "cli"}
ROOTED = {"kafka", "object-store"}
"""Others' images that write where they please; all else has a read-only root."""
SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY|KEYS|SHA256")


class _Loader(yaml.SafeLoader):
    """Compose's own tags say how files are merged; here each file is looked at alone."""


def _plain(loader: _Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Loader.add_constructor("!reset", _plain)
_Loader.add_constructor("!override", _plain)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), _Loader)
    return found


def services(name: str = MAIN) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(name)["services"]
    return found


def every_setting() -> Iterator[tuple[str, str, str]]:
    """(service, variable, value) of all files."""
    for name in FILES:
        for service, spec in services(name).items():
            yield from ((service, key, str(value)) for key, value in (spec.get("environment") or {}).items())


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The Compose Specification's, as check-jsonschema brings it along."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    found: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", FILES)
def test_it_follows_the_compose_specification(name: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(read(name), schema)


@pytest.mark.parametrize("name", FILES)
def test_every_image_has_a_version(name: str) -> None:
    for service, spec in services(name).items():
        image = spec.get("image", "none:0.0")
        if "TEXTMILL_MINIO_IMAGE" in image:
            continue  # its owner names it, as there is none to name here
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-cuda)?$", image), f"{service}: {image}"


@pytest.mark.parametrize("service", services())
def test_a_service_is_bounded_watched_and_confined(service: str) -> None:
    spec = services()[service]
    limits = spec["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= limits.keys()
    assert "test" in spec["healthcheck"] or spec["healthcheck"]["disable"]
    assert "test" in spec["healthcheck"] or service in ("cli", "demo-model")
    assert "no-new-privileges:true" in spec["security_opt"]
    assert service in ROOTED or spec["read_only"]
    assert service == "object-store" or spec["cap_drop"] == ["ALL"]
    assert "max-size" in spec["logging"]["options"]
    assert "restart" in spec or service == "cli"
    assert "privileged" not in spec
    assert "network_mode" not in spec


def test_only_the_gateway_and_the_consoles_are_published_and_here_alone() -> None:
    published = {name: spec["ports"] for name, spec in services().items() if "ports" in spec}
    assert set(published) == PUBLISHED
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not [name for file in (GPU, MINIO) for name, spec in services(file).items() if "ports" in spec]


def test_who_is_not_published_and_fetches_nothing_has_no_way_out() -> None:
    networks = read(MAIN)["networks"]
    assert networks["inner"]["internal"]
    ways_out = {name: set(spec["networks"]) - {"inner"} for name, spec in services().items()}
    assert {name for name, out in ways_out.items() if out} == PUBLISHED | {"ingest", "synth"}
    assert all("inner" in spec["networks"] for spec in services().values())


def test_no_secret_is_written_down() -> None:
    for service, variable, value in every_setting():
        if SECRETS.search(variable) and value not in ("on", "off"):
            assert re.search(r"\$\{[A-Z0-9_]+:\?", value), f"{service}: {variable} is {value}"
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for line in example.splitlines():
        name, _, value = line.partition("=")
        assert not (SECRETS.search(name) and value and not line.startswith("#")), line


def test_everything_that_is_read_from_the_environment_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    known = set(re.findall(r"^(?:# )?([A-Z0-9_]+)=", example, re.MULTILINE))
    read_here = {name for file in FILES for name in re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / file).read_text())}
    assert read_here - known == set()


def test_our_services_are_built_from_the_dockerfiles_here() -> None:
    described = {image.tag: image.dockerfile for image in IMAGES}
    for name in OURS:
        spec = services()[name]
        assert described[spec["image"]] == spec["build"]["dockerfile"]
        assert (ROOT / spec["build"]["dockerfile"]).is_file()


def test_mounted_files_of_the_repository_are_there() -> None:
    for spec in services().values():
        for volume in spec.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), volume


def test_named_volumes_and_networks_are_declared() -> None:
    declared = read(MAIN)
    used = {v.partition(":")[0] for spec in services().values() for v in spec.get("volumes", []) if v[0] not in ".$"}
    assert used == set(declared["volumes"])
    assert {n for spec in services().values() for n in spec["networks"]} == set(declared["networks"])


# -- merged, as podman-compose reads them: it needs no engine for that --------------------------------------------


def merged(tmp_path: Path, *files: str) -> dict[str, dict[str, Any]]:
    """The services of several files together, with secrets as a user makes them. Any program with a version passes for
    podman where nothing is run."""
    env_file = make_env(tmp_path / ".env", TEXTMILL_MINIO_IMAGE="registry.example.com/minio:1.0")
    command = [sys.executable, "-m", "podman_compose", "--podman-path", sys.executable, "--env-file", str(env_file)]
    command += [word for file in files for word in ("-f", str(ROOT / file))]
    done = subprocess.run([*command, "config"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


def test_with_the_file_for_gpus_trainer_and_engine_get_one_and_cuda(tmp_path: Path) -> None:
    alone, together = merged(tmp_path, MAIN), merged(tmp_path, MAIN, GPU)
    for name in ("trainer", "engine"):
        spec = together[name]
        assert spec["image"] == f"textmill/{name}:0.1.0-cuda"
        assert spec["build"]["target"] == "cuda"
        assert spec["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
        assert alone[name]["environment"].items() <= together[name]["environment"].items()
        assert spec["read_only"]
    assert {n: s for n, s in together.items() if n not in ("trainer", "engine")} == {
        n: s for n, s in alone.items() if n not in ("trainer", "engine")
    }


def test_with_the_file_for_minio_nothing_of_seaweedfs_is_left(tmp_path: Path) -> None:
    """Where a list is merged instead of replaced, a health check becomes one that asks both, and so fails."""
    store = merged(tmp_path, MAIN, MINIO)["object-store"]
    assert store["image"] == "registry.example.com/minio:1.0"
    assert store["command"][:2] == ["server", "/data"]
    assert store["volumes"] == ["minio-data:/data"]
    assert store["healthcheck"]["test"] == ["CMD", "curl", "-sf", "http://127.0.0.1:8333/minio/health/live"]
    assert len(store["tmpfs"]) == 1


def test_with_the_file_for_tracing_all_of_ours_send_spans_to_a_console_that_is_here_alone(tmp_path: Path) -> None:
    alone, together = merged(tmp_path, MAIN), merged(tmp_path, MAIN, TRACING)
    traces = together.pop("traces")
    assert traces["read_only"]
    assert traces["cap_drop"] == ["ALL"]
    assert [port.rpartition(":")[0] for port in traces["ports"]] == ["127.0.0.1:16686"]
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://traces:4318"}
    sending = {name for name, spec in together.items() if address.items() <= (spec.get("environment") or {}).items()}
    assert sending == OURS - {"demo-model", "cli"}  # the command line's profile is not asked for here
    for name in sending:
        assert together[name]["environment"] == alone[name]["environment"] | address
