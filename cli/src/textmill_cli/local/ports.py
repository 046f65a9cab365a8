"""Free TCP ports on loopback, the same ones again after a restart."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def any_free() -> int:
    """A port nobody listens on now. Another program may still take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def remembered(file: Path, preferred: Mapping[str, int]) -> dict[str, int]:
    """A port for each name, kept in ``file``: clients and data that hold an address find it again after a restart.

    A preference of 0 stands for any port. A remembered port that someone else has taken is replaced.
    """
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    ports: dict[str, int] = {}
    for name, wish in preferred.items():
        port = known.get(name) or wish
        while port == 0 or port in ports.values() or not is_free(port):
            port = any_free()
        ports[name] = port
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ports, indent=1))
    return ports
