"""Runs a service's process: API, worker or both, until SIGTERM, with a drain in between."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from textmill.bus import JobBus
from textmill.errors import DependencyDown
from textmill.jobs import Jobs, RetryPolicy
from textmill.settings import BusSettings, ServiceSettings, StoreSettings
from textmill.store import S3Store, probe
from textmill.telemetry import configure_logging
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


def open_backends(settings: ServiceSettings) -> tuple[S3Store, JobBus, Jobs]:
    """What every ``main`` begins with: logging, store, bus, jobs."""
    configure_logging(settings.log_level)
    bus = BusSettings().open()
    store = open_store(StoreSettings())
    return store, bus, open_jobs(store, bus, settings)


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

    In the role ``worker`` the app is served too, for health and metrics.
    """
    thread = (
        threading.Thread(target=worker.run, name="worker", daemon=True) if worker and settings.role != "api" else None
    )
    config = uvicorn.Config(
        serve or app, host=settings.host, port=settings.port, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(settings.grace_s), timeout_keep_alive=75, loop="uvloop" if _has_uvloop() else "asyncio",
    )  # fmt: skip
    if thread is not None:
        thread.start()
    try:
        uvicorn.Server(config).run()
    finally:
        if worker is not None:
            worker.drain()
        if thread is not None:
            thread.join(settings.grace_s + 5)
        if on_stop is not None:
            on_stop()


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


def lifespan_of(start: Callable[[], object], stop: Callable[[], object]) -> Callable[[FastAPI], object]:
    """A FastAPI lifespan from two blocking calls."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(start)
        yield
        await asyncio.to_thread(stop)

    return lifespan
