"""Runs a service's process: API, worker or both, until SIGTERM, with a drain in between."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from textmill import tracing
from textmill.bus import JobBus
from textmill.errors import DependencyDown
from textmill.jobs import Jobs, RetryPolicy
from textmill.settings import BusSettings, ServiceSettings, StoreSettings
from textmill.store import S3Store, probe
from textmill.telemetry import configure_logging
from textmill.tracing import TraceRequests
from textmill.worker import Pace, Worker

log = logging.getLogger(__name__)


def open_store(settings: StoreSettings, wait_s: float = 60.0) -> S3Store:
    """Connect, make the bucket, and refuse a store without create-only writes. Waits for one that is starting."""
    store = settings.open()
    deadline = time.monotonic() + wait_s
    while True:
        try:
            store.ensure_bucket()
            probe(store)
            return store
        except DependencyDown as exc:
            if time.monotonic() > deadline:
                raise
            log.warning("waiting for the object store", extra={"error": str(exc)})
            time.sleep(1.0)


def open_jobs(store: S3Store, bus: JobBus, settings: ServiceSettings) -> Jobs:
    policy = RetryPolicy(lease_ttl_s=settings.lease_ttl_s, max_attempts=settings.max_attempts)
    return Jobs(store, ring=bus.ring, bury=bus.bury, policy=policy)


def open_backends(service: str, settings: ServiceSettings) -> tuple[S3Store, JobBus, Jobs]:
    """What every ``main`` begins with: logging, tracing, store, bus, jobs."""
    configure_logging(settings.log_level)
    tracing.configure(service)
    _end_at_sigterm()
    bus = BusSettings().open()
    store = open_store(StoreSettings())
    return store, bus, open_jobs(store, bus, settings)


def _end_at_sigterm() -> None:
    """Until the server listens for signals itself: the kernel gives process 1 of a container none that it ignores."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def pace(settings: ServiceSettings) -> Pace:
    """Heartbeats several times a lease, so that one missed beat loses nothing."""
    return Pace(
        heartbeat_s=min(2.0, settings.lease_ttl_s / 4),
        recover_every_s=settings.recover_every_s,
        grace_s=settings.grace_s,
    )


def run_service(
    app: FastAPI,
    worker: Worker | None,
    settings: ServiceSettings,
    *,
    serve: ASGIApp | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Serve ``app`` (or ``serve``, an ASGI app around it) and run the worker beside it; return after the drain.

    In the role ``worker`` the app is served too, for health and metrics. API and worker drain at the same time, so
    that both are done ``grace_s`` after the signal.
    """
    thread = (
        threading.Thread(target=worker.run, name="worker", daemon=True) if worker and settings.role != "api" else None
    )
    served = serve or app
    config = uvicorn.Config(
        TraceRequests(served) if tracing.enabled() else served,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.grace_s),
        timeout_keep_alive=75,
        loop="uvloop" if _has_uvloop() else "asyncio",
    )
    if thread is not None:
        thread.start()
    try:
        _Server(config, on_signal=worker.drain if worker is not None else _nothing).run()
    finally:
        if worker is not None:
            worker.drain()
        if thread is not None:
            thread.join(settings.grace_s + 5)
        if on_stop is not None:
            on_stop()


class _Server(uvicorn.Server):
    """Tells the worker of a signal at once, and then returns: uvicorn's own would die of the signal, drain undone."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()
        super().handle_exit(sig, frame)


def _nothing() -> None:
    pass


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True
