"""A worker of the load generator: ``python -m textmill_inference.loadtest.worker``, one process a core.

Reads an ``Order`` and a ``Go`` from standard input, writes a ``FromWorker`` line a second. Ends when its work is done,
or when its standard input is closed: no worker outlives its generator.
"""

import asyncio
import gc
import os
import resource
import sys
import time
from collections.abc import Iterator
from time import perf_counter

import uvloop

from textmill.contracts.load import ClosedLoop, Stage, TraceEntry
from textmill_inference.loadtest.drive import Drive
from textmill_inference.loadtest.orders import Ended, FromWorker, Go, Order, Ready, Tick
from textmill_inference.loadtest.traffic import Requests
from textmill_inference.loadtest.watch import Watch

SPARE_FILES = 64


def main() -> None:
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    if order.cpu is not None:
        os.sched_setaffinity(0, {order.cpu})
    raise_file_limit(files_needed(order.stage, order.workers))
    requests = Requests(
        order.stage.target, order.stage.traffic, order.gauge, order.worker, order.workers, order.continuous_usage
    )
    # Nothing made from here on is in a cycle for long; pauses of the collector would be in the latencies.
    gc.freeze()
    gc.disable()
    _tell(FromWorker(ready=Ready(worker=order.worker)))
    go = Go.model_validate_json(sys.stdin.buffer.readline())
    uvloop.run(_work(order, requests, go.at))


async def _work(order: Order, requests: Requests, began: float) -> None:
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _orphaned)
    drive = Drive(order, requests, _entries(order.trace), began)
    watch = Watch()
    cpu_before = time.process_time()
    ticking = asyncio.create_task(_tick(order.worker, drive, watch, began))
    await drive.run()
    ticking.cancel()
    _tell(FromWorker(tick=_report(order.worker, drive, watch, began, _second(began))))
    _tell(FromWorker(ended=_ended(order.worker, drive, time.process_time() - cpu_before)))


async def _tick(worker: int, drive: Drive, watch: Watch, began: float) -> None:
    at_s = -1
    while True:
        # The end of the second that is running now: after a standstill the ones missed have no report of their own.
        at_s = max(at_s + 1, _second(began))
        await asyncio.sleep(max(0.0, began + at_s + 1 - perf_counter()))
        _tell(FromWorker(tick=_report(worker, drive, watch, began, at_s)))
        gc.collect(1)


def _second(began: float) -> int:
    """The one that is running."""
    return max(0, int(perf_counter() - began))


def _report(worker: int, drive: Drive, watch: Watch, began: float, at_s: int) -> Tick:
    phases, counted, others, tokens = drive.tally.report()
    cpu, starved, lag = watch.report()
    return Tick(
        worker=worker,
        at_s=at_s,
        phases=phases,
        counted=counted,
        others=others,
        output_tokens=tokens,
        in_flight=drive.in_flight,
        connections=drive.wire.connections,
        cpu_share=cpu,
        starved_share=starved,
        loop_lag=lag,
        in_window=drive.overlaps_window(began + at_s, perf_counter()),
    )


def _ended(worker: int, drive: Drive, cpu_s: float) -> Ended:
    tally = drive.tally
    seconds, succeeded, tokens = drive.window or (0.0, 0, 0)
    return Ended(
        worker=worker,
        window_s=seconds,
        window_succeeded=succeeded,
        window_tokens=tokens,
        prompt_tokens=tally.prompt_tokens,
        output_tokens=tally.output_tokens,
        sources=dict(tally.sources),
        gaps=dict(tally.gaps),
        server_times={name: histogram.counts for name, histogram in tally.server_times.items()},
        slowest=tally.slowest(),
        error_samples=tally.error_samples(),
        cpu_s=cpu_s,
        chunks=tally.chunks,
        requests=tally.requests,
        own_limits=tally.own_limits,
    )


def files_needed(stage: Stage, workers: int) -> int:
    """How many files one worker may hold open: a connection each for all that can be under way at once."""
    if isinstance(stage.load, ClosedLoop):
        most = stage.load.concurrency
    else:
        most = stage.max_in_flight
    return -(-most // workers) + SPARE_FILES


def raise_file_limit(needed: int) -> bool:
    """Within the hard limit. False if that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        return False
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return True


def _entries(path: str | None) -> Iterator[TraceEntry]:
    if path is None:
        return
    with open(path, "rb") as file:
        yield from (TraceEntry.model_validate_json(line) for line in file if line.strip())


def _orphaned() -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        os._exit(1)


def _tell(line: FromWorker) -> None:
    sys.stdout.write(line.model_dump_json(exclude_defaults=True) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
