"""The gateway of bench/gateway.py in a process of its own, as the inference service runs it: keys, admission, metrics.

    python bench/gateway_served.py URL [--port 0] [--profile FILE]

Prints its own URL. The control app is a bare one with /metrics; the engine at URL counts as ready always. ``--profile``
writes what cProfile found when the process is told to end.
"""

import argparse
import cProfile
import hashlib
import socket
from dataclasses import dataclass

from fastapi import FastAPI, Response
from prometheus_client import generate_latest

from textmill.service import run_service
from textmill.settings import ServiceSettings
from textmill_inference.gateway.admission import Admission
from textmill_inference.gateway.app import Gateway
from textmill_inference.gateway.keys import KeyRing
from textmill_inference.gateway.ports import Outcome

KEY = "sk-bench"


@dataclass
class Engine:
    """An upstream that is always ready, and the route to it."""

    url: str
    name: str = "mock"
    model: str = "mock"
    ready: bool = True
    trouble: str = ""
    in_flight: int = 0

    def suspect(self) -> None:
        print("suspected", flush=True)

    def note(self, outcome: Outcome) -> None:
        pass

    def choose(self, sample: float) -> "Engine":
        return self

    def take_shadow(self) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--profile", default="")
    options = parser.parse_args()
    app = FastAPI()

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest())

    engine = Engine(options.url, options.model, options.model)
    routes = {engine.name: engine}
    keys = KeyRing((hashlib.sha256(KEY.encode()).hexdigest(),), required=True)
    gateway = Gateway(app, lambda: routes, keys, admission=Admission())
    port = options.port or _free_port()
    print(f"http://127.0.0.1:{port}", flush=True)
    settings = ServiceSettings(port=port, grace_s=2.0)
    if not options.profile:
        run_service(app, None, settings, serve=gateway)
        return
    with cProfile.Profile() as profile:
        run_service(app, None, settings, serve=gateway)
    profile.dump_stats(options.profile)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
