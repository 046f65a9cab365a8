"""Where a target is: its URL taken apart and its name resolved, once. No other host is dialled in the whole run."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from textmill.contracts.load import Target
from textmill.errors import BadRequest

_TRY_S = 2.0


@dataclass(frozen=True)
class Endpoint:
    """``host`` is an IP address. ``base`` is the URL's path up to and including ``/v1``."""

    host: str
    port: int
    tls: bool
    server_name: str
    host_header: str
    base: str

    @property
    def root(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_header}"

    def path(self, api: str) -> str:
        return f"{self.base}/chat/completions" if api == "chat" else f"{self.base}/completions"


def endpoint(target: Target) -> Endpoint:
    """Raises ``BadRequest`` for what is no address of an HTTP server, or a name that doesn't resolve."""
    parts = urlsplit(target.url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
        raise BadRequest(f"target url {target.url!r} is no HTTP address; give one like http://127.0.0.1:8100")
    port = port or (443 if parts.scheme == "https" else 80)
    base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
    return Endpoint(_resolved(parts.hostname, port), port, parts.scheme == "https", parts.hostname, parts.netloc, base)


def _resolved(host: str, port: int) -> str:
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as exc:
        raise BadRequest(f"the target's name {host!r} doesn't resolve ({exc}); check the url") from exc
    return first_that_accepts(found, port)


def first_that_accepts(addresses: Sequence[str], port: int) -> str:
    """``localhost`` is often two, and a server listens on one of them. The first when none does."""
    if len(addresses) == 1:
        return addresses[0]
    return next((address for address in addresses if _accepts(address, port)), addresses[0])


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_TRY_S).close()
    except OSError:
        return False
    return True
