"""The images as an engine builds them: how large, who runs in them, and what is not in them."""

import json

import pytest
from container_engine import BASE, ContainerEngine
from container_images import BUILT, UID, VERSION, Image

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
LOOK_INSIDE = """
import glob, json, os, shutil
tools = [t for t in ("cc", "gcc", "g++", "make") if shutil.which(t)]
caches = [p for p in ("/root/.cache/pip", "/scratch/cache", "/scratch/.cache") if os.path.isdir(p) and os.listdir(p)]
def can_write(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "tools": tools, "caches": caches,
    "pip": glob.glob("/opt/textmill/lib/*/site-packages/pip"), "sources": os.path.exists("/src"),
    "written": [p for p in ("/x", "/opt/textmill/x", "/etc/x", "/scratch/x") if can_write(p)],
}))
"""
READ_ONLY = ("--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
WITH_PYTHON = [image for image in BUILT if image.python]


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_it_adds_no_more_to_the_base_than_is_promised(
    image: Image, images: tuple[Image, ...], engine: ContainerEngine, measured: dict[str, dict[str, float]]
) -> None:
    base = engine.inspect("image", BASE)["Size"] if image.python else 0
    added_mb = (engine.inspect("image", image.tag)["Size"] - base) / 1e6
    measured.setdefault(image.name, {})["added_mb"] = round(added_mb)
    assert image.limit_mb is None or added_mb < image.limit_mb


@pytest.mark.parametrize("image", BUILT, ids=lambda image: image.name)
def test_it_says_what_it_is_and_starts_as_a_fixed_user(
    image: Image, images: tuple[Image, ...], engine: ContainerEngine
) -> None:
    found = engine.inspect("image", image.tag)["Config"]
    assert found["User"] == f"{UID}:{UID}"
    assert found["Labels"]["org.opencontainers.image.version"] == VERSION
    assert found["Labels"]["org.opencontainers.image.title"].startswith("textmill ")
    assert found["Entrypoint"][0] not in ("/bin/sh", "sh")


@pytest.mark.parametrize("image", WITH_PYTHON, ids=lambda image: image.name)
def test_inside_there_is_nothing_to_build_with_and_nowhere_to_write(
    image: Image, images: tuple[Image, ...], engine: ContainerEngine
) -> None:
    found = json.loads(
        engine.run("run", *READ_ONLY, "--tmpfs", "/scratch", "--entrypoint", "python3", image.tag, "-c", LOOK_INSIDE)
    )
    assert (found["uid"], found["gid"]) == (UID, UID)
    assert found["tools"] == []
    assert found["caches"] == []
    assert found["pip"] == []
    assert not found["sources"]
    assert found["written"] == ["/scratch/x"]
