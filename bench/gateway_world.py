"""What bench/gateway.py runs: mock and gateway as processes on cores of their own, and a client that times them.

With more than one core the gateway, or its peer, has the first to itself; the mock and the client share the others.
"""

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cores import on

from textmill.http1 import HttpPool

BENCH = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
GATEWAY_CORES, CLIENT_CORES = set(CORES[:1]), set(CORES[1:] or CORES)
KEY = "sk-bench"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """A server that runs. ``cpu_s`` is what it and its children have used."""

    url: str
    pid: int

    @property
    def cpu_s(self) -> float:
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self._pids()) / _TICKS

    @property
    def rss_mb(self) -> float:
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._pids()) * _PAGE / 1e6

    def _pids(self) -> list[int]:
        found, new = [self.pid], [self.pid]
        while new:
            new = [int(child) for pid in new for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            found += new
        return found


def _stat(pid: int) -> Sequence[str]:
    """The fields of /proc/PID/stat after the command's name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@contextmanager
def server(
    command: Sequence[str],
    cores: set[int],
    *,
    url: str = "",
    probe: str = "/metrics",
    env: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Until it answers on ``probe``. One that doesn't know its port prints its URL; else ``url`` is given."""
    whole_env = None if env is None else {**os.environ, **env}
    with on(cores):
        out = subprocess.DEVNULL if url else subprocess.PIPE
        process = subprocess.Popen(command, stdout=out, text=True, env=whole_env)
    try:
        if not url:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
        _await_answer(process, url + probe)
        yield Process(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(process: "subprocess.Popen[str]", url: str, within_s: float = 300.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no answer from {url} ({' '.join(map(str, process.args))})") from None
            time.sleep(0.1)


def mock(**options: float) -> AbstractContextManager[Process]:
    """As ``python bench/gateway_mock.py --help`` says."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return server([sys.executable, str(BENCH / "gateway_mock.py"), *flags], CLIENT_CORES)


def gateway(engine_url: str, *more: str) -> AbstractContextManager[Process]:
    return server([sys.executable, str(BENCH / "gateway_served.py"), engine_url, *more], GATEWAY_CORES)


@dataclass
class Took:
    """What a client saw. Times are seconds; ``events`` are those of streams, counted as they come."""

    seconds: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    events: int = 0
    errors: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def quantile(self, share: float, of: str = "seconds") -> float:
        ordered = sorted(getattr(self, of))
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass(frozen=True)
class Ask:
    """One kind of request, at one server."""

    url: str
    stream: bool = False
    model: str = "mock"
    max_tokens: int = 50

    @property
    def body(self) -> bytes:
        return (
            b'{"model":"%b","messages":[{"role":"user","content":"How many lines has hexagram seven, and which of '
            b'them are whole?"}],"temperature":0,"max_tokens":%d,"stream":%b}'
            % (self.model.encode(), self.max_tokens, b"true" if self.stream else b"false")
        )


_HEADERS = b"Authorization: Bearer %b\r\nContent-Type: application/json\r\n" % KEY.encode()


async def one(pool: HttpPool, ask: Ask, body: bytes, took: Took, scheduled: float | None = None) -> None:
    """One exchange; latency counts from ``scheduled``, or from the sending."""
    began = time.perf_counter() if scheduled is None else scheduled
    try:
        incoming = await pool.stream(b"POST", "/v1/chat/completions", _HEADERS, body)
        try:
            data = await incoming.read()
            if ask.stream:
                took.ttft.append(time.perf_counter() - began)
            tail = b""
            while data:
                took.events += data.count(b"data: {")
                tail = (tail + data)[-32:]
                data = await incoming.read()
        finally:
            incoming.close()
    except OSError as exc:
        took.errors.append(type(exc).__name__)
        return
    if incoming.status != 200 or (ask.stream and b"[DONE]" not in tail):
        took.errors.append(str(incoming.status))
        return
    took.seconds.append(time.perf_counter() - began)


async def closed(ask: Ask, at_once: int, seconds: float, ramp_s: float = 0.0, watched: Process | None = None) -> Took:
    """``at_once`` exchanges always under way. Those of the ramp are not counted; the last ones are let end."""
    pool, body, took, warm = HttpPool(ask.url, idle_s=60), ask.body, Took(), Took()
    loop = asyncio.get_running_loop()
    begins = loop.time() + ramp_s + (1.0 if ramp_s else 0.2)
    ends = begins + seconds

    async def client(number: int) -> None:
        await asyncio.sleep(ramp_s * number / at_once)
        while (now := loop.time()) < ends:
            await one(pool, ask, body, took if now >= begins else warm)

    clients = [asyncio.create_task(client(number)) for number in range(at_once)]
    await asyncio.sleep(begins - loop.time())
    cpu_s, events, wall = watched.cpu_s if watched else 0.0, warm.events, time.perf_counter()
    await asyncio.sleep(ends - loop.time())
    took.wall_s = time.perf_counter() - wall
    took.cpu_s = (watched.cpu_s if watched else 0.0) - cpu_s
    events = took.events + warm.events - events
    await asyncio.gather(*clients)
    took.errors += warm.errors
    took.events = events
    pool.close()
    return took


async def opened(ask: Ask, per_s: float, seconds: float) -> Took:
    """So many requests a second, evenly, whether or not those before have been answered."""
    pool, body, took = HttpPool(ask.url, idle_s=60), ask.body, Took()
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    began, count = time.perf_counter(), int(per_s * seconds)
    sent = 0
    while sent < count:
        due = min(count, int((time.perf_counter() - began) * per_s) + 1)
        for number in range(sent, due):
            task = loop.create_task(one(pool, ask, body, took, began + number / per_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        sent = due
        await asyncio.sleep(0.001)
    if tasks:
        await asyncio.wait(tasks)
    took.wall_s = time.perf_counter() - began
    pool.close()
    return took
